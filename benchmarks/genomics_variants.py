"""Genotypes: ancestry from 45 SNPs over five hospitals, and GWAS and PCA beside plink2.

    python -m benchmarks.genomics_variants --data ../shared/data/kg_eur_chr20 [--plink2 PATH]

Ancestry is deploy/studies/ancestry.toml as shipped: its VCF files read by the site's own reader,
clipped sums and the noise of the sum as in distributed mode (each site's share is of the size that
leaves the declared noise when one is lost and one colludes), in this process. Channel, guard
and Flower are left out: they change no number. Association and components are of the 503 Europeans
in chr20 with a simulated phenotype (there is no real one), by the releases' own sums over the five
populations as sites. plink2 (GPL) is an oracle of this benchmark and no part of Fedward.
"""

import argparse
import csv
import gzip
import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.ehr_pooled import pooled_steps
from benchmarks.study import environment, load_study
from fedward_client.data.vcf import read_vcf
from fedward_client.training.trainer import LocalTrainer, PerformanceFlags
from fedward_common.genotypes.encoding import GenotypeTally, encode_genotypes, present_people
from fedward_common.ids import SiteId
from fedward_common.models.averages import released_models
from fedward_common.models.registry import initial_tensors
from fedward_common.privacy.accounting import calibrate_noise_multiplier
from fedward_common.privacy.randomness import Csprng
from fedward_common.privacy.statistics import exact_sums, noise_deviation
from fedward_common.study.encoding import PatientRecords
from fedward_common.study.genotypes import Genotypes
from fedward_common.study.spec import ModelSpec, StudySpec
from fedward_common.study.variant_statistics import (
    AlleleFrequencies,
    GenotypeCovariance,
    VariantRelease,
    VariantScores,
)
from fedward_server.aggregation import plain_sum, server_optimiser
from fedward_server.sandbox.baselines import pool
from fedward_server.sandbox.datasets_genotypes import deal_ancestry
from fedward_server.sandbox.figures import model_figures
from fedward_server.variant_figures import variant_figures

ROOT = Path(__file__).parents[1]
FOLDS: Final = 5
FLAGS: Final = PerformanceFlags(backend="opacus")
DRAWS: Final = 10
LOCI: Final = 300
SMALL_PANEL: Final = 50
CAUSAL: Final = 25
EPSILON: Final = 8.0
SITES: Final = 5
PHENOTYPE_SEED: Final = 20261126
Tables = Mapping[SiteId, PatientRecords]


def main() -> None:
    parser = argparse.ArgumentParser(description="Genotypes: ancestry, GWAS, PCA.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--plink2", help="the program, to compare with")
    parser.add_argument("--quick", action="store_true", help="one draw of one model: no figure")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"ancestry": ancestry(options.data, quick=options.quick), "environment": environment()}
    if not options.quick:
        found["europeans"] = europeans(options.data, plink2=options.plink2)
    text = json.dumps(found, indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def ancestry(data: Path, *, quick: bool = False) -> dict[str, Any]:
    study = load_study(ROOT / "deploy" / "studies" / "ancestry.toml")
    schema = study.data
    if not isinstance(schema, Genotypes):
        raise SystemExit("expected genotypes")
    with tempfile.TemporaryDirectory() as folder:
        files = deal_ancestry(data, Path(folder))
        parts = [
            {site: _records(schema, path, part) for site, path in files.items()}
            for part in ("train", "test")
        ]
        whole = {
            site: _records(schema.model_copy(update={"split": None}), path, "train")
            for site, path in files.items()
        }
    train, test = parts
    if quick:
        return {"one_draw": _accuracy(study, private_run(study, train), test)}
    convolution = _with_model(study, {"name": "locus-cnn", "shape": [1, 45], "hidden": [8]})
    layered = _with_model(study, {"name": "mlp", "hidden": [32]})
    held_out = {
        "linear": [_accuracy(study, private_run(study, train), test) for _ in range(DRAWS)],
        "locus-cnn": [
            _accuracy(convolution, private_run(convolution, train), test) for _ in range(3)
        ],
        "mlp": [_accuracy(layered, private_run(layered, train), test) for _ in range(3)],
    }
    labels = pool(list(test.values())).labels
    return {
        "people": {site: [train[site].patients, test[site].patients] for site in train},
        "majority": float(np.bincount(labels.astype(int)).max() / len(labels)),
        "held_out_epsilon_8": {
            name: {"mean": float(np.mean(x)), "sd": float(np.std(x, ddof=1)), "draws": len(x)}
            for name, x in held_out.items()
        },
        "held_out_without_privacy": {
            "linear": _accuracy(study, pooled_steps(study, train), test),
            "mlp": _accuracy(layered, pooled_steps(layered, train), test),
            "locus-cnn": _accuracy(convolution, pooled_steps(convolution, train), test),
        },
        "cross_validated": _cross_validated(study, whole),
    }


def _records(schema: Genotypes, path: Path, part: Any) -> PatientRecords:
    with path.with_name("patients.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return encode_genotypes(schema, read_vcf(path, schema), rows, part=part, strict=True)


def _with_model(study: StudySpec, model: dict[str, Any]) -> StudySpec:
    spec = ModelSpec.model_validate({**model, "outputs": 5, "initial_seed": 1})
    return study.model_copy(update={"model": spec})


def private_run(study: StudySpec, train: Tables) -> Mapping[str, Any]:
    """The mean of the last models of distributed DP-SGD: one site with all patients takes the same
    steps, with the noise that the shares of all sites add up to when nobody is lost.
    """
    document = study.model_dump(mode="json")
    factor = study.thresholds.site_noise_factor * math.sqrt(len(study.sites))
    document |= {"secure_sum": False, "quorum": 1, "sites": [document["sites"][0]]}
    document["sites"][0]["patients"] = study.public_patients
    document["dp"] |= {"placement": "local"}
    document["dp"]["noise_multiplier"] *= factor
    one = StudySpec.model_validate(document)
    site = SiteId(one.sites[0].id)
    trainer = LocalTrainer(one, site, sampling=Csprng(), noise=Csprng(), flags=FLAGS)
    records, optimiser, tail = pool(list(train.values())), server_optimiser(one), _tail(one)
    model: Mapping[str, Any] = initial_tensors(one.model, records.features.shape[1])
    for _ in range(one.rounds):
        total = plain_sum(one)
        total.add(site, trainer.train(model, records).tensors)
        model = optimiser.step(model, total.mean())
        tail.add(dict(model))
    return tail.mean()


def _tail(study: StudySpec) -> Any:
    return released_models(study)


def _accuracy(study: StudySpec, model: Mapping[str, Any], test: Tables) -> float:
    found = model_figures(study, dict(model), test).pooled.accuracy
    return float("nan") if found is None else found


def _cross_validated(study: StudySpec, whole: Tables) -> dict[str, Any]:
    """Everybody is left out once; folds are drawn within the hospitals."""
    draw = np.random.default_rng(1)
    folds = {site: draw.permutation(len(r.labels)) % FOLDS for site, r in whole.items()}
    scores: dict[str, list[tuple[float, int]]] = {"federated": [], "epsilon 8": [], "pooled": []}
    for fold in range(FOLDS):
        train = {s: _some(r, folds[s] != fold) for s, r in whole.items()}
        test = {s: _some(r, folds[s] == fold) for s, r in whole.items()}
        size = sum(records.patients for records in test.values())
        together, left_out = pool(list(train.values())), pool(list(test.values()))
        plain = LogisticRegression(max_iter=1000).fit(together.features, together.labels)
        for name, accuracy in (
            ("federated", _accuracy(study, pooled_steps(study, train), test)),
            ("epsilon 8", _accuracy(study, private_run(study, train), test)),
            ("pooled", float(plain.score(left_out.features, left_out.labels))),
        ):
            scores[name].append((accuracy, size))
    return {
        name: float(np.average([a for a, _ in found], weights=[n for _, n in found]))
        for name, found in scores.items()
    }


def _some(records: PatientRecords, chosen: np.ndarray) -> PatientRecords:
    return PatientRecords(
        features=records.features[chosen],
        labels=records.labels[chosen],
        patient=np.arange(int(chosen.sum()), dtype=np.int64),
    )


def europeans(data: Path, *, plink2: str | None) -> dict[str, Any]:
    """Association and components of the Europeans: sums of five sites beside plink2."""
    source = data / "eur503_chr20_1-4Mb.vcf.gz"
    loci = _common_loci(source)
    with (data / "panel_2504.tsv").open(encoding="utf-8") as file:
        people = [one for one in csv.DictReader(file, delimiter="\t") if one["super_pop"] == "EUR"]
    schema = _european_schema(loci)
    calls = read_vcf(source, schema)
    order = {name: number for number, name in enumerate(calls.samples)}
    people.sort(key=lambda one: order[one["sample"]])
    rows = _phenotypes(calls.dosage, people)
    with tempfile.TemporaryDirectory() as folder:
        oracle = _plink(Path(folder), source, loci, rows, program=plink2) if plink2 else {}
    releases: list[VariantRelease] = [
        AlleleFrequencies(noise_multiplier=1.0, min_frequency=0.0, min_cell_size=1),
        VariantScores(model="linear", noise_multiplier=1.0),
        GenotypeCovariance(norm=2.0 * math.sqrt(LOCI), noise_multiplier=1.0),
    ]
    found: dict[str, Any] = {"loci": len(loci), "people": len(rows)}
    noise = calibrate_noise_multiplier(
        epsilon=EPSILON, epsilon_is="pld", delta=1e-4, sampling_probability=1.0, steps=1
    )
    for panel, size in (("all", LOCI), ("small", SMALL_PANEL)):
        part = _european_schema(loci[:size])
        own = read_vcf(source, part)
        for release in releases:
            name = f"{release.kind}: {panel}"
            found[name] = _beside(release, part, own, rows, noise=noise, oracle=oracle)
    return found


def _beside(
    release: VariantRelease,
    schema: Genotypes,
    calls: Any,
    rows: Sequence[Mapping[str, str]],
    *,
    noise: float,
    oracle: Mapping[str, Any],
) -> dict[str, Any]:
    if isinstance(release, GenotypeCovariance):
        release = release.model_copy(update={"norm": 2.0 * math.sqrt(len(schema.loci))})
    sums, whole = _sums(release, schema, calls, rows), release
    if isinstance(release, GenotypeCovariance):  # so wide that nobody is cut
        whole = release.model_copy(update={"norm": 10.0 * release.norm})
    exact = variant_figures(
        whole, schema, _sums(whole, schema, calls, rows).tolist(), deviation=0.0
    )
    told = {"numbers": len(sums)}
    noisy_release = release.model_copy(update={"noise_multiplier": noise})
    deviation = noise_deviation(noisy_release, schema) * math.sqrt(SITES)
    told["noise_deviation_local"] = deviation
    source = Csprng()
    draws = [
        variant_figures(
            release,
            schema,
            (sums + deviation * source.normal(len(sums))).tolist(),
            deviation=deviation,
        )
        for _ in range(DRAWS)
    ]
    return told | _compared(release, exact, draws, oracle)


def _sums(
    release: VariantRelease, schema: Genotypes, calls: Any, rows: Sequence[Mapping[str, str]]
) -> np.ndarray:
    """The sums of every site's own people, added up."""
    found = []
    for site in sorted({row["pop"] for row in rows}):
        own = [row for row in rows if row["pop"] == site]
        people = present_people(schema, calls, own, strict=True, tally=GenotypeTally())
        found.append(exact_sums(release, schema, people))
    return np.sum(found, axis=0)


def _compared(
    release: VariantRelease,
    exact: Mapping[str, Any],
    draws: Sequence[Mapping[str, Any]],
    oracle: Mapping[str, Any],
) -> dict[str, Any]:
    if isinstance(release, GenotypeCovariance):
        ours = np.array(exact["eigenvalues"])
        found = {"first_loading_cosine_epsilon_8": _mean([_cosine(exact, d) for d in draws])}
        if len(exact["loadings"]) == LOCI and "eigenvalues" in oracle:
            theirs = np.array(oracle["eigenvalues"])
            found["largest_relative_difference_plink2"] = float(
                np.abs(ours[: len(theirs)] / theirs - 1.0).max()
            )
        return found
    if isinstance(release, VariantScores):
        ours = np.array([one["statistic"] for one in exact["loci"]], dtype=float)
        best = int(np.nanargmax(np.abs(ours)))
        ranks = []
        for draw in draws:
            told = [abs(one["statistic"] or 0.0) for one in draw["loci"]]
            ranks.append(1.0 + sum(x > told[best] for x in told))
        found = {
            "strongest_t": float(ours[best]),
            "its_rank_at_epsilon_8": _mean(ranks),
            "tests_at_epsilon_8": _mean(
                [float(sum(one["p"] is not None for one in d["loci"])) for d in draws]
            ),
        }
        if "linear" in oracle:
            theirs = np.array(oracle["linear"])[: len(ours)]
            found["largest_difference_of_t_plink2"] = float(np.nanmax(np.abs(ours - theirs)))
        return found
    ours = np.array([one["frequency"] for one in exact["loci"]], dtype=float)
    wrong = [
        abs(one["frequency"] - true)
        for draw in draws
        for one, true in zip(draw["loci"], ours, strict=True)
        if one["frequency"] is not None
    ]
    found = {"mean_error_epsilon_8": _mean(wrong)}
    if "frequencies" in oracle:
        theirs = np.array(oracle["frequencies"])[: len(ours)]
        found["largest_difference_plink2"] = float(np.abs(ours - theirs).max())
    return found


def _cosine(exact: Mapping[str, Any], draw: Mapping[str, Any]) -> float:
    one, other = (
        np.array([locus["components"][0] for locus in found["loadings"]]) for found in (exact, draw)
    )
    return float(abs(one @ other))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _common_loci(source: Path) -> list[dict[str, Any]]:
    """Every so many of the common SNPs that are no A/T or C/G, with the frequencies found there."""
    found = []
    with gzip.open(source, "rt", encoding="utf-8") as text:
        for line in text:
            if line.startswith("#"):
                continue
            chrom, pos, name, ref, alt, *_, cells = line.rstrip("\n").split("\t", 9)
            pair = {ref, alt}
            if len(ref) != 1 or len(alt) != 1 or pair in ({"A", "T"}, {"C", "G"}):
                continue
            genotypes = "".join(cell.partition(":")[0] for cell in cells.split("\t"))
            share = genotypes.count("1") / (genotypes.count("1") + genotypes.count("0"))
            if 0.1 <= share <= 0.9 and name.startswith("rs") and ";" not in name:
                place = {"id": name, "chrom": chrom, "pos": int(pos), "ref": ref, "alt": alt}
                found.append(place | {"frequency": share})
    step = len(found) // LOCI
    return list({one["id"]: one for one in found[::step]}.values())[:LOCI]


def _european_schema(loci: list[dict[str, Any]]) -> Genotypes:
    return Genotypes.model_validate(
        {
            "kind": "genotypes",
            "build": "GRCh37",
            "loci": loci,
            "patient_key": "patient_id",
            "columns": [{"name": "sex", "type": "category", "values": ["0", "1"]}],
            "label": {"column": "height", "unit": "cm", "low": 130.0, "high": 210.0},
        }
    )


def _phenotypes(dosage: np.ndarray, people: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A simulated height: sex, one locus of 4 cm a copy, and chance."""
    chance = np.random.default_rng(PHENOTYPE_SEED)
    rows = []
    for number, one in enumerate(people):
        sex = int(one["gender"] == "male")
        height = 162.0 + 12.0 * sex + 4.0 * dosage[number, CAUSAL] + 6.0 * chance.normal()
        rows.append(
            {
                "sample": one["sample"],
                "patient_id": one["sample"],
                "pop": one["pop"],
                "sex": str(sex),
                "height": f"{min(max(height, 130.0), 210.0):.1f}",
            }
        )
    return rows


def _plink(
    folder: Path,
    source: Path,
    loci: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, str]],
    *,
    program: str,
) -> dict[str, Any]:
    """plink2's frequencies, linear tests and eigenvalues on the pooled file."""
    (folder / "loci").write_text("".join(f"{one['id']}\n" for one in loci))
    lines = [f"{r['sample']}\t{r['height']}\t{r['sex']}\n" for r in rows]
    (folder / "ph").write_text("#IID\theight\tsex01\n" + "".join(lines))
    tested = (
        "--pheno ph --pheno-name height --covar ph --covar-name sex01 --glm hide-covar omit-ref"
    )
    for options in ("--freq", tested, "--pca 10"):
        command = [program, "--vcf", str(source.resolve()), "--extract", "loci", "--out", "o"]
        command += ["--threads", "1", *options.split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    by_name = {one["id"]: number for number, one in enumerate(loci)}
    frequencies, linear = np.zeros(len(loci)), np.zeros(len(loci))
    for row in _table(folder / "o.afreq"):
        frequencies[by_name[row["ID"]]] = float(row["ALT_FREQS"])
    for row in _table(folder / "o.height.glm.linear"):
        linear[by_name[row["ID"]]] = float(row["T_STAT"])
    values = [float(text) for text in (folder / "o.eigenval").read_text().split()]
    return {"frequencies": frequencies, "linear": linear, "eigenvalues": values}


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    main()
