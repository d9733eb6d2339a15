"""A prefill/decode-disaggregated LLM server on Ray Serve with a native C++ engine.

`LLM` and `SamplingParams` are loaded on first use: importing the package loads no native code.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtp_llm.llm import LLM
    from rtp_llm.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "rtp_llm.llm", "SamplingParams": "rtp_llm.sampling_params"}


def __getattr__(name: str) -> Any:
    """Import a public name from its home module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
