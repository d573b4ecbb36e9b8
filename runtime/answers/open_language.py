"""A bundle's language side, opened for a stream."""

from __future__ import annotations

from stc import contracts
from stc.bundles.bundle import Bundle
from stc.engines.engine import Backend
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import LanguageError
from stc.manifest import LanguageSpec
from stc.prompts.prompt import Prompt
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.settings import MemorySettings


def open_model(bundle: Bundle, backend: Backend) -> LanguageModel:
    """The decoder of `bundle`; where engines have static sizes, its context is their longest.

    Raises LanguageError when it was exported without one, EngineError when a graph cannot be
    loaded.
    """
    spec, precision = _spec(bundle), bundle.manifest.provenance.precision
    if not isinstance(backend, TensorRtBackend):
        return LanguageModel(backend, spec, precision)
    attend = contracts.attend_graph(0)
    buckets = KvBuckets(backend.sizes(attend, "m"), backend.sizes(attend, "S"))
    longest = min(spec.max_positions, buckets.contexts[-1])
    spec = spec.model_copy(update={"max_positions": longest})
    return LanguageModel(backend, spec, precision, buckets)


def open_stream_language(
    bundle: Bundle, backend: Backend, settings: MemorySettings, kept: int
) -> StreamLanguage:
    """The language side of one stream that keeps `kept` = k tokens per frame, able to answer.

    Raises LanguageError when the bundle has no language side or no prompt of its own,
    SettingsError when `settings` do not fit, EngineError when a graph cannot be loaded.
    """
    prompt = Prompt(bundle.companions(), _spec(bundle), bundle.root)
    model = open_model(bundle, backend)
    memory = settings.make(model, len(prompt.before), kept)
    return StreamLanguage(model, memory, prompt, settings.prefill_every)


def _spec(bundle: Bundle) -> LanguageSpec:
    spec = bundle.manifest.language
    if spec is None:
        raise LanguageError(bundle.root, "has no language side", fix=bundle.export_again())
    return spec
