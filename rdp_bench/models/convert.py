"""Weight files of any format that a model was released in, converted to safetensors."""

from pathlib import Path

from rdp_bench.errors import BadModelError, UsageError
from rdp_bench.keys import hash_file
from rdp_bench.models import classifier, families
from rdp_bench.models.card import Card, cards
from rdp_bench.weights import files, legacy
from rdp_bench.weights.files import State


def convert(source: Path, out: Path, model: str) -> int:
    """Convert the weights of a model to a safetensors file under the model's own tensor names, in 32 bits.

    The network is created and filled first, so a file that does not fit is refused and nothing is written.

    Args:
        source: a TensorFlow checkpoint in one file, MMdnn's `.npy` (tf_to_pytorch_model), tensorpack's `.npz`, or any
            file that the model loads directly.
        out: the file to write; it must end in `.safetensors` and not exist.
        model: a built-in model, or `timm:NAME`.

    Returns:
        How many tensors were written.

    Raises:
        UsageError: `source` does not exist, `out` exists or has another ending, or the model is unknown.
        BadModelError: the file is damaged, or does not fit the model.
        StorageError: `out` cannot be written.
    """
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: the result is a safetensors file; name one that ends in .safetensors")
    if out.exists():
        raise UsageError(f"{out} exists; choose another name, or delete it")
    card = cards()[model] if model in cards() else classifier.timm_card(model, pretrained=False)
    net = classifier.create(card)
    classifier.load_state(net, _read(source, card), card, source)
    state = net.state_dict()
    files.save(out, state, {"model": model, "source": source.name, "source_sha256": hash_file(source)}, half=False)
    return len(state)


def _read(path: Path, card: Card) -> State:
    if legacy.legacy_format(path) is None:
        return files.read_tensors(path)
    family = families.find(card.arch)
    if family and (read := family.readers.get(path.suffix)):
        return read(path)
    released = ", ".join(card.legacy_files)
    raise BadModelError(
        f"{path.name}: model {card.name} was not released in this format; "
        f"expected {f'{released}, ' if released else ''}.safetensors or .pth"
    )
