"""The model card of a coordinator's run: what it knows, which is less than a sandbox knows."""

from collections.abc import Mapping
from typing import Any

from fedward_common.study.spec import StudySpec
from fedward_server.report.card import markdown_text
from fedward_server.report.figures import epsilon_text, unit_text


def run_card(study: StudySpec, *, run: str, outcome: Mapping[str, Any], epsilon: float) -> str:
    """The card of a finished run: use, data, training, privacy. No figure of any hospital's own.

    `epsilon` is the admission figure of the whole study at its declared number of rounds.
    """
    dp = study.dp.model_dump(mode="json")
    cost = epsilon_text(epsilon, delta=float(dp["delta"]), per=unit_text(str(dp["unit"])))
    sites = "\n".join(f"| {site.id} | {site.patients} |" for site in study.sites)
    committed, abandoned = outcome["committed_rounds"], outcome["abandoned_rounds"]
    stopped = ""
    if outcome.get("stopped_after") is not None:
        stopped = (
            f"\n- Stopped early after round {outcome['stopped_after']}, by noised counts of the "
            "held-out patients that evaluated it as well: its figures flatter a little."
        )
    return f"""\
# Model card: {markdown_text(study.title)}

Study {study.id}, digest {study.digest}. Run {run}.

## Intended use

- Research on the task `{study.task.kind}`, for patients like those of the hospitals below.
- Not a medical device and not clinically validated. Nobody's care should depend on its output.

## Data

Records stayed at the hospitals; the numbers are public planning constants of the study.

| Hospital | Planned training patients |
|---|---:|
{sites}

## Training

- {committed} of {study.rounds} rounds committed, {abandoned} abandoned; {study.local_steps} local \
steps a round; aggregation {study.aggregation.name}.{stopped}
- Which sites took part in which round, and the digest of the model after it: manifest.json.

## Privacy

- The whole study, training and every release, at its full number of rounds: {cost}, by the \
admission accountant.
- A patient of two hospitals is covered by each hospital's figure alone, not by one figure for both.
"""
