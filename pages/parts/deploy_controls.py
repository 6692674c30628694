"""What is to be served, on what and at what price: the controls of the Deploy page, their values kept in the URL."""

import streamlit as st

from karipap_core.deployment import hardware
from karipap_core.deployment.footprint import Footprint, of_config
from karipap_core.deployment.request import Load, Machine
from karipap_core.errors import InputError
from karipap_core.reading import named, parse_json
from pages.parts import common, runs

NO_PLAN, THIS = "no plan", "this machine"
FIXED = {"not said": None, "fixed": True, "free to choose": False}
LARGEST = 1 << 20  # bytes of a config.json
DTYPES = ("fp16", "fp8", "int8", "int4")


@st.cache_resource(show_spinner=False)
def detected() -> hardware.Gpu | None:
    return hardware.detect()


@st.cache_resource(show_spinner="Counting the parameters …", max_entries=8)
def counted(data: bytes, name: str) -> Footprint:
    """The footprint of an uploaded config.json."""
    document = parse_json(data, name, lenient=True)
    if not isinstance(document, dict):
        raise InputError(f"{name} holds {named(document)}, not an object: it is not a model's config.json.")
    return of_config(document, name)


def number(label: str, name: str, default: int, largest: int, **more) -> int:
    """A whole number kept in the URL; what a URL says is taken only where it is one in range."""
    if name not in st.session_state:
        asked = st.query_params.get(name, "")
        digits = asked.isdecimal() and len(asked) <= len(str(largest))  # int() refuses thousands of them
        st.session_state[name] = int(asked) if digits and 1 <= int(asked) <= largest else default
    value = st.number_input(
        label, min_value=1, max_value=largest, step=1, key=name, persist_state="session", width=150, **more
    )
    common.share(name, default)
    return int(value)


def positions(view) -> int:
    """The tokens that the model in view was made for."""
    inner = view.checkpoint.config.get("text_config")
    config = inner if isinstance(inner, dict) else view.checkpoint.config
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return found if isinstance(found, int) and found > 0 else 4096


def load(view) -> tuple[Load, str | None, object | None]:
    """Tokens, batch, how the cache is kept; and the plan with its name."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-load"):
        tokens = number(
            "Tokens a sequence",
            "tokens",
            min(4096, positions(view)),
            10_000_000,
            help="Prompt and answer together.",
        )
        batch = number("Sequences at once", "batch", 8, 4096)
        kv_dtype = common.choose(
            st.segmented_control,
            "KV cache in",
            DTYPES,
            "kv",
            "fp16",
            required=True,
            help="fp8 and int8 with fixed scales; int4 in groups of 64 with scale and zero point.",
        )
        sparse = st.toggle(
            "Sparse attention",
            key="sparse",
            persist_state="session",
            help="The model itself chooses which tokens to read in each step, by an indexer or by attention that was "
            "trained to be sparse. Otherwise every step reads every token.",
        )
        kept = 100
        if sparse:
            kept = common.choose(
                st.select_slider,
                "Tokens kept",
                [1, 2, 5, 10, 20, 30, 50, 75, 100],
                "keep",
                10,
                width=220,
                format_func=lambda percent: f"{percent} %",
            )
        name, plan = plan_of(view)
    return Load(tokens, batch, kv_dtype, kept / 100, sparse), name, plan


def machine() -> tuple[Machine, bool | None]:
    """The GPU, its price, and what is known of its formats; and whether the checkpoint is fixed."""
    here = detected()
    names = ([THIS] if here else []) + list(hardware.gpus())
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-machine"):
        name = common.choose(
            st.selectbox,
            "GPU",
            names,
            "gpu",
            THIS if here else "H100 SXM",
            width=260,
            format_func=lambda each: f"{here.name} (here)" if each == THIS else each,
        )
        card = here if name == THIS else hardware.gpus()[name]
        money = {"min_value": 0.0, "value": None, "width": 150, "persist_state": "session"}
        price = st.number_input("Price, $ an hour", key="price", placeholder="not given", **money) or None
        throughput = (
            st.number_input(
                "Throughput, tokens/s",
                key="throughput",
                placeholder="not given",
                help="Measured on what is deployed: the plan, else the dense model. All sequences together.",
                **money,
            )
            or None
        )
        fp8 = card.generation == "Ada" and st.toggle(
            "fp8 is benchmarked",
            key="fp8_benchmarked",
            persist_state="session",
            help="On this very card, against int8.",
        )
        fp4 = card.generation == "Blackwell" and st.toggle(
            "fp4 is validated", key="fp4_validated", persist_state="session", help="On this very model's quality."
        )
        said = common.choose(
            st.segmented_control,
            "The checkpoint is",
            list(FIXED),
            "fixed",
            "not said",
            required=True,
            help="Fixed: a licence, data residency, a fine-tune with no smaller twin, or hardware on site allow no "
            "other model. The verdict depends on it.",
        )
    gpu = "auto" if name == THIS else name
    return Machine(gpu, price, throughput, fp8_benchmarked=fp8, fp4_validated=fp4), FIXED[said]


def other_models() -> tuple[Footprint | None, Footprint | None]:
    """(a model from a config.json in the place of the one in view, a smaller one to compare with)."""
    with st.expander("Other models, by their config.json", key="k-configs"):
        left, right = st.columns(2, gap="large")
        with left:
            instead = upload("Instead of the model above", "config_instead")
        with right:
            smaller = upload("The smaller dense model to compare with", "config_smaller")
        st.caption("A config.json is enough: the parameters are counted on an empty model. Nothing is fetched.")
    return instead, smaller


def upload(label: str, key: str) -> Footprint | None:
    file = st.file_uploader(label, type=["json"], key=key, max_upload_size=1)
    if file is None:
        return None
    if file.size > LARGEST:
        raise InputError(f"{file.name} is larger than 1 MB: this is no config.json.")
    return counted(file.getvalue(), file.name)


def plan_of(view) -> tuple[str | None, object | None]:
    """(name, plan) of the workspace's plan that is chosen; (None, None) for none, or for another model's config."""
    plans = {} if st.session_state.get("config_instead") else runs.plans(view)
    name, gone = common.asked(
        st.selectbox,
        "Plan",
        [NO_PLAN, *plans],
        "deploy_plan",
        NO_PLAN,
        "plan",
        width=260,
        format_func=runs.shown,
        help="The full pipeline with this plan: its bytes are counted exactly.",
    )
    if gone:
        st.stop()
    return (None, None) if name == NO_PLAN else (name, plans[name])
