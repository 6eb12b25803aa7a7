"""The engine of models that the decoding engine does not know, for any model, so that the two can be compared."""

from models.catalog import EngineSpec
from models.language.causal import load_causal_model
from models.language.options import options_of
from models.language.sequential import SequentialEngine
from models.ports.context import EngineContext


def build_sequential(spec: EngineSpec, context: EngineContext) -> SequentialEngine:
    """Build it as `models.language.transformers.build` would."""
    options = options_of(spec.options)
    assert spec.folder is not None
    causal = load_causal_model(
        spec.folder,
        device=options.device,
        dtype=options.dtype,
        window_tokens=options.context_tokens,
        prefill_tokens=options.prefill_tokens,
        template=options.template,
    )
    return SequentialEngine(causal, options, context.clock)
