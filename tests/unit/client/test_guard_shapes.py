"""A guard checks updates by what the signed study says, without the library that trains models."""

import json
import subprocess
import sys

from tests.support.studies import load_example

ASK = """
import json, sys
from fedward_client.guard.main import study_shapes
from fedward_common.study.spec import StudySpec

study = StudySpec.model_validate_json(sys.stdin.read())
shapes = {name: list(shape) for name, shape in study_shapes(study).items()}
print(json.dumps({"shapes": shapes, "torch": "torch" in sys.modules}))
"""


def test_a_guard_knows_the_shapes_of_an_update_without_torch() -> None:
    study = load_example("breast-cancer", noise_multiplier=7.0)

    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=study.model_dump_json(),
        capture_output=True,
        check=True,
        text=True,
    )

    assert json.loads(done.stdout) == {
        "shapes": {"linear.weight": [1, 30], "linear.bias": [1]},
        "torch": False,
    }
