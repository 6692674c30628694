"""Ten lines of Python that load a compressed folder, made for that folder."""

from pathlib import Path

from karipap_core.checkpoint.files import has_tokenizer
from karipap_core.checkpoint.kinds import PREDICTS, kind_of, loader_of
from karipap_core.errors import InputError


def loader(folder: str | Path) -> str:
    """Ten lines of Python that load the folder and use it, where `karipap_core` can be imported; those of a model that
    reads images or sound end where it is loaded."""
    folder = Path(folder).absolute()
    config = _config_of(folder)
    kind = kind_of(config, True)
    auto, writes = loader_of(config, kind), kind in PREDICTS
    alone = _reads_text_alone(config, folder.name)
    texts = alone and has_tokenizer(folder)
    lines = [
        "import torch",
        "import karipap_core  # from here on transformers loads compressed folders",
        f"from transformers import {auto}" + (", AutoTokenizer" if texts else ""),
        "",
        f"folder = {str(folder)!r}",
        f'model = {auto}.from_pretrained(folder, dtype="auto").eval()',
    ]
    if not alone:
        return "\n".join([*lines, 'print(model.main_input_name, f"{model.num_parameters():,} parameters")'])
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


def _reads_text_alone(config: dict, name: str) -> bool:
    """Whether a model can be run on nothing but tokens."""
    from karipap_core.models import running
    from karipap_core.models.empty import config_of, from_config

    try:
        model = from_config(config_of(config, name), config, name)
    except InputError:  # verify says so, in a check of its own
        return True
    return model.main_input_name == running.TOKENS and running.why_not(model) is None


def _config_of(folder: Path) -> dict:
    from karipap_core.reading import read_json

    return read_json(folder / "config.json", lenient=True)
