"""What comes of a released model: synthetic rows, and the beginning of another study."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedward_server.commands.options import Debug, Json

app = typer.Typer()
Package = Annotated[Path, typer.Argument(help="A model package.")]
Key = Annotated[
    str | None, typer.Option(help="The study lead's public key (hexadecimal) to insist on.")
]


@app.command()
def synthesize(
    package: Package,
    rows: Annotated[int, typer.Option(help="How many rows are drawn.")] = 1000,
    out: Annotated[Path, typer.Option(help="The folder for table and statement.")] = Path(
        "synthetic"
    ),
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw synthetic rows or images from a released variational autoencoder or GAN."""
    del debug
    from fedward_server.synthesize import IMAGES, TABLE
    from fedward_server.synthesize import synthesize as draw

    statement = draw(package, rows=rows, out=out, public_key=key)
    if as_json:
        typer.echo(json.dumps(statement))
        return
    privacy, made = statement["privacy"], TABLE if "columns" in statement else IMAGES
    typer.echo(
        f"{out / made}: {rows} rows; epsilon {privacy['epsilon_admission']:.3g} (admission) at "
        f"delta {privacy['delta']:g} per {privacy['unit']}"
    )
    for line in statement["limits"]:
        typer.echo(f"  {line}")


def start_weights(
    package: Package,
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    begin: Annotated[str, typer.Option(help="How the tensors' names begin.")] = "hidden.",
    named: Annotated[
        str | None, typer.Option("--as", help="What stands there in the next study's model.")
    ] = None,
    key: Key = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write some tensors of a model, such as its encoder, for another study's model.start."""
    del debug
    from fedward_common.arrays import tensors_to_bytes
    from fedward_common.canonical import sha256_hex
    from fedward_common.trust.private_files import write_atomically
    from fedward_server.synthesize import encoder_tensors

    tensors = encoder_tensors(package, beginning=begin, named=named, public_key=key)
    content = tensors_to_bytes(tensors)
    write_atomically(target, content)
    facts = {"sha256": sha256_hex(content), "tensors": [begin if named is None else named]}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f'{target}: {len(tensors)} tensors\n[model.start]\nsha256 = "{facts["sha256"]}"\n'
        f"tensors = {json.dumps(facts['tensors'])}"
    )


def bert_weights(
    folder: Annotated[
        Path, typer.Argument(help="config.json, model.safetensors and vocab.txt of a BERT.")
    ],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a local BERT's encoder for a study's model.start. Nothing of the folder is run."""
    del debug
    from fedward_common.arrays import tensors_to_bytes
    from fedward_common.canonical import sha256_hex
    from fedward_common.trust.private_files import write_atomically
    from fedward_server.bert_weights import read_bert

    found = read_bert(folder)
    content = tensors_to_bytes(found.tensors)
    write_atomically(target, content)
    facts: dict[str, dict[str, Any]] = {
        "model": {"name": "bert", "hidden": list(found.hidden), "shape": [1, found.pieces + 1]},
        "start": {"sha256": sha256_hex(content), "tensors": ["encoder."]},
        "tokeniser": {
            "kind": "word-pieces",
            "vocabulary_sha256": found.vocabulary_sha256,
            "pieces": found.pieces,
            "lower_case": found.lower_case,
        },
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    sections = {"model": "model", "start": "model.start", "tokeniser": "data.tokeniser"}
    for name, section in sections.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in facts[name].items()]
        typer.echo("\n".join([f"[{section}]", *lines]))
    typer.echo(f"# and in [data.tokeniser]: max_tokens, at most {found.hidden[-1] - 2}")
