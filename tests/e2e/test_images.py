"""A study of images from the study file to the signed model, through real processes."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedward_server.synthesize import IMAGES, LABELS, synthesize
from tests.support.image_studies import SIDE, masks_npz, npz
from tests.support.live import program

pytestmark = [pytest.mark.federation, pytest.mark.slow]

STUDY = f"""
id = "bright"
title = "Bright or dark, three hospitals"
rounds = 2
local_steps = 2
quorum = 3
deadline_seconds = 120

[task]
kind = "image-classification"

[model]
name = "cnn"
shape = [1, {SIDE}, {SIDE}]
hidden = [4]

[dp]
kind = "dp-sgd"
epsilon = 8.0
delta = 1e-4
clip_norm = 1.0
sampling_probability = 0.5
max_records_per_patient = 2

[training]
learning_rate = 0.5

[aggregation]
name = "fedavg"

[[releases]]
kind = "binned-scores"
bins = 4
noise_multiplier = 4.0

[data]
kind = "image"
height = {SIDE}
width = {SIDE}

[data.label]
column = "label"
low = 0
high = 1
positive_from = 1

[data.split]
kind = "column"
column = "split"
"""
SITES = ("north", "east", "south")


@pytest.mark.parametrize("unit", ["patient", "record"])
def test_images_train_a_model_and_the_unit_is_printed_as_it_is(unit: str, tmp_path: Path) -> None:
    patients = [f"p{number // 2}" for number in range(80)]
    labels = [number // 2 % 2 for number in range(80)]
    splits = ["test" if number // 2 % 4 in (0, 3) else "train" for number in range(80)]
    text = STUDY
    if unit == "record":
        text = text.replace("[training]", "unit = 'record'\n\n[training]", 1)
        text = text.replace("max_records_per_patient = 2", "max_records_per_patient = 1")
        text = text.replace("width = ", "no_patient_key = true\nwidth = ")
    for site in SITES:
        text += f'\n[[sites]]\nid = "{site}"\npatients = 20\n'
    (tmp_path / "study.toml").write_text(text)
    options = []
    for seed, site in enumerate(SITES):
        (tmp_path / site).mkdir()
        keyed = patients if unit == "patient" else []
        npz(tmp_path / site / "images.npz", patients=keyed, labels=labels, splits=splits, seed=seed)
        options += ["--site", f"{site}={tmp_path / site}"]

    done = program(
        "fedward-server",
        "sandbox",
        tmp_path / "study.toml",
        *options,
        "--out",
        tmp_path / "out",
        "--json",
        timeout=900,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["unit"] == unit
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    held_out = {facts["held_out"] for facts in result["per_site"].values()}
    assert held_out == ({20} if unit == "patient" else {40})
    assert np.isfinite(result["auc"]["federated"])
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    words = "per record; NOT per patient" if unit == "record" else "per patient of one site"
    assert words in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("classes", [False, True], ids=["of any kind", "of a class each"])
def test_synthetic_images_come_out_of_a_generator(classes: bool, tmp_path: Path) -> None:
    begin, end = STUDY.index("[[releases]]"), STUDY.index("[data]")
    text = STUDY[:begin] + STUDY[end:]
    text = text.replace("image-classification", "generation").replace(
        'name = "cnn"', 'name = "gan"'
    )
    text = text.replace(f"shape = [1, {SIDE}, {SIDE}]", "shape = [2]")
    if classes:
        text = text.replace('"generation"', '"generation"\nclass_shares = [0.5, 0.5]')
        text = text.replace("hidden = [4]", "hidden = [4]\noutputs = 2")
    options = []
    for seed, site in enumerate(SITES):
        text += f'\n[[sites]]\nid = "{site}"\npatients = 20\n'
        (tmp_path / site).mkdir()
        people, labels = [f"p{n}" for n in range(60)], [n % 2 for n in range(60)]
        splits = ["test" if n % 3 == 2 else "train" for n in range(60)]
        npz(
            tmp_path / site / "images.npz", patients=people, labels=labels, splits=splits, seed=seed
        )
        options += ["--site", f"{site}={tmp_path / site}"]
    (tmp_path / "study.toml").write_text(text)

    done = program(
        *("fedward-server", "sandbox", tmp_path / "study.toml", *options),
        *("--out", tmp_path / "out", "--json"),
        timeout=900,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    learned = {"synthetic_trained_auc"} if classes else set()
    assert set(result["figures"]) == {"told_apart"} | learned
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    statement = synthesize(tmp_path / "out" / "model", rows=5, out=tmp_path / "rows")
    assert statement["privacy"]["epsilon_admission"] <= 8.0
    assert np.load(tmp_path / "rows" / IMAGES)["images"].shape == (5, SIDE, SIDE)
    assert (tmp_path / "rows" / LABELS).is_file() == classes
    assert statement.get("class_shares") == ([0.5, 0.5] if classes else None)


COLOUR = {
    f"shape = [1, {SIDE}, {SIDE}]": f"shape = [3, {SIDE}, {SIDE}]",
    "learning_rate = 0.5": "learning_rate = 0.5\n\n[training.jitter]\ncopies = 2\nscale = 0.05\n"
    'augment = [{ kind = "flip", axis = "left-right" }, { kind = "turn", degrees = 10.0 },\n'
    '{ kind = "zoom", factor = 0.1 }, { kind = "contrast", factor = 0.1 },\n'
    '{ kind = "brightness", by = 0.05 }]',
    'kind = "image"\n': 'kind = "image"\nchannels = 3\n',
}


def test_colour_images_train_on_changed_copies_of_themselves(tmp_path: Path) -> None:
    text = STUDY
    for old, new in COLOUR.items():
        assert old in text
        text = text.replace(old, new)
    people = [f"p{number}" for number in range(60)]
    splits = ["test" if number % 2 else "train" for number in range(60)]
    labels = [number // 2 % 2 for number in range(60)]
    options = []
    for seed, site in enumerate(SITES):
        text += f'\n[[sites]]\nid = "{site}"\npatients = 30\n'
        (tmp_path / site).mkdir()
        path = tmp_path / site / "images.npz"
        npz(path, patients=people, labels=labels, splits=splits, seed=seed, colour=True)
        options += ["--site", f"{site}={tmp_path / site}"]
    (tmp_path / "study.toml").write_text(text)
    out = ("--out", tmp_path / "out", "--json")

    done = program(
        "fedward-server", "sandbox", tmp_path / "study.toml", *options, *out, timeout=900
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["rounds"] == {"committed": 2, "abandoned": 0}
    assert result["study"]["model"]["shape"] == [3, SIDE, SIDE]
    assert all(0 < epsilon <= 8.0 for epsilon in result["epsilon"].values())
    assert np.isfinite(result["auc"]["federated"])


MASKS = {
    'kind = "image-classification"': 'kind = "image-segmentation"',
    f'name = "cnn"\nshape = [1, {SIDE}, {SIDE}]\nhidden = [4]': (
        'name = "unet"\nshape = [1, 8, 8, 8]\nhidden = [4, 8]\noutputs = 2'
    ),
    'kind = "binned-scores"\nbins = 4': (
        'kind = "overlap-scores"\nstructures = 1\nlongest_mm = 20.0\nbins = 5'
    ),
    f'kind = "image"\nheight = {SIDE}\nwidth = {SIDE}': (
        'kind = "image-masks"\ndepth = 16\nheight = 16\nwidth = 16\nstructures = ["core"]\n'
        "patch = [8, 8, 8]\nstride = [8, 8, 8]\nspacing_mm = [1.0, 1.0, 1.0]"
    ),
    '[data.label]\ncolumn = "label"\nlow = 0\nhigh = 1\npositive_from = 1\n\n': "",
}
BANK = {
    old: new.replace('name = "unet"', 'name = "filter-bank"')
    .replace("[1, 8, 8, 8]", "[1, 16, 16, 16]")
    .replace("[8, 8, 8]", "[16, 16, 16]")
    for old, new in MASKS.items()
}
CLASSES = {
    # With more noise what is left of forty patients a class may be fewer than ten.
    "noise_multiplier = 4.0": "noise_multiplier = 1.0",
    "hidden = [4]": "hidden = [4]\noutputs = 3",
    'kind = "binned-scores"\nbins = 4': (
        'kind = "class-scores"\nclasses = 3\nexclusive = true\nbins = 4'
    ),
    'column = "label"\nlow = 0\nhigh = 1\npositive_from = 1': (
        'column = "found"\nclasses = ["a", "b", "c"]'
    ),
}


@pytest.mark.parametrize("kind", ["masks", "bank", "classes"])
def test_masks_and_several_classes_run_from_the_study_to_figures_of_their_own(
    kind: str, tmp_path: Path
) -> None:
    text = STUDY
    for old, new in {"masks": MASKS, "bank": BANK, "classes": CLASSES}[kind].items():
        assert old in text
        text = text.replace(old, new)
    people = [f"p{number}" for number in range(60)]
    splits = ["test" if number % 2 else "train" for number in range(60)]
    options = []
    for seed, site in enumerate(SITES):
        text += f'\n[[sites]]\nid = "{site}"\npatients = 30\n'
        (tmp_path / site).mkdir()
        path = tmp_path / site / "images.npz"
        if kind != "classes":
            masks_npz(path, patients=people, splits=splits, seed=seed)
        else:
            found = np.array(["a", "b", "c"] * 20)
            npz(path, patients=people, labels=[0] * 60, splits=splits, seed=seed, found=found)
        options += ["--site", f"{site}={tmp_path / site}"]
    (tmp_path / "study.toml").write_text(text)

    done = program(
        "fedward-server",
        "sandbox",
        tmp_path / "study.toml",
        *options,
        "--out",
        tmp_path / "out",
        "--json",
        timeout=900,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    names = {"auc: a", "f1: c"} if kind == "classes" else {"dice", "dice: core"}
    assert names <= result["figures"].keys()
    for name in names:
        figure = result["figures"][name]
        low, high = figure["federated_interval"]
        assert low <= figure["federated"] <= high
        assert 0.0 <= figure["federated_private"] <= 1.0
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("AUC: a" if kind == "classes" else "Dice: core") in page
