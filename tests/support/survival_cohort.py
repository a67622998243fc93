"""A made-up cohort in the columns of the TCGA files."""

import numpy as np


def patients(count: int = 96) -> list[dict[str, str]]:
    """Made up; the first gene shortens the time to death."""
    draws = np.random.default_rng(3)
    found = []
    for number in range(count):
        values = draws.normal(size=3)
        months = float(draws.exponential(30 * np.exp(-1.5 * values[0])))
        row = {f"G{k}_rnaseq": f"{value:.4f}" for k, value in enumerate(values)}
        row |= {f"G{k}_cnv": str(draws.integers(-2, 3)) for k in range(2)}
        about = {
            "case_id": f"p{number}",
            "tss": "ABCDEFGH"[number % 8],
            "age": "60",
            "is_female": str(float(number % 2)),
            "survival_months": f"{min(months, 60.0) + 0.1:.2f}",
            "censorship": str(float(months > 60.0)),
        }
        found.append(row | about)
    return found
