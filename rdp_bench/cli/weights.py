"""`rdp-bench weights`: convert weight files."""

from pathlib import Path

import click


@click.group("weights")
def weights_() -> None:
    """Convert weight files."""


@weights_.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="NAME", help="Model that the weights belong to.")
def convert(source: Path, out: Path, model: str) -> None:
    """Convert the weight file IN of a model to the safetensors file OUT.

    IN is a TensorFlow checkpoint in one file (TF-slim's resnet_v2_101.ckpt), a .npy file of tf_to_pytorch_model, a .npz
    file of tensorpack (R152-Denoise.npz), or any file that the model loads directly. No code in IN is run. Every tensor
    must fit the model. Name OUT after the model and put it into the folder that you pass as --models-dir.
    """
    from rdp_bench.models.convert import convert as write

    count = write(source, out, model)
    click.echo(f"{out}: {count} tensors of {model}; next: put it into your --models-dir folder")
