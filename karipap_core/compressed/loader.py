"""Ten lines of Python that load a compressed folder, made for that folder."""

from pathlib import Path

from karipap_core.checkpoint.files import has_tokenizer
from karipap_core.checkpoint.kinds import PREDICTS, kind_of, loader_of


def loader(folder: str | Path) -> str:
    """Ten lines of Python that load the folder and use it, where `karipap_core` can be imported."""
    folder = Path(folder).absolute()
    config = _config_of(folder)
    kind = kind_of(config, True)
    auto, writes = loader_of(config, kind), kind in PREDICTS
    texts = has_tokenizer(folder)
    lines = [
        "import torch",
        "import karipap_core  # from here on transformers loads compressed folders",
        f"from transformers import {auto}" + (", AutoTokenizer" if texts else ""),
        "",
        f"folder = {str(folder)!r}",
        f'model = {auto}.from_pretrained(folder, dtype="auto").eval()',
    ]
    if texts:
        lines += [
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            'ids = tokenizer("def main():", return_tensors="pt").input_ids',
        ]
        back = "print(tokenizer.decode(out[0]))"
    else:
        lines += ["ids = torch.tensor([[1, 2, 3]])"]
        back = "print(out[0])"
    lines += ["out = model.generate(ids, max_new_tokens=20)" if writes else "out = model(ids)[0].detach()"]
    lines += [back if writes else "print(out.shape)"]
    return "\n".join(lines)


def _config_of(folder: Path) -> dict:
    from karipap_core.reading import read_json

    return read_json(folder / "config.json", lenient=True)
