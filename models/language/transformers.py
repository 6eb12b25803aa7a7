"""The transformers engine: a model in this process, on a GPU where there is one.

A model of the Llama family is served by the decoding engine, which serves all requests at once; any other one by transformers'
own code, an answer's step at a time.
"""

from dataclasses import replace
from functools import partial

from safetensors import SafetensorError

from models.catalog import EngineSpec
from models.errors import BadInput, Internal
from models.language.causal import load_causal_model, load_config
from models.language.decoding.build import build_loop
from models.language.decoding.engine import DecodingEngine
from models.language.decoding.loading import is_known
from models.language.options import options_of
from models.language.sequential import SequentialEngine
from models.ports.context import EngineContext
from models.ports.generate import Engine


def build(spec: EngineSpec, context: EngineContext) -> Engine:
    """Load the model in the spec's folder; the options have the fields of `TransformersOptions`.

    Raises:
        BadInput: the options do not fit, the spec names no folder, or the model is not one that converses.
        Internal: what lies in the folder cannot be loaded.
    """
    options = options_of(spec.options)
    if options.threads is None:
        options = replace(options, threads=context.threads)
    if spec.folder is None:
        raise BadInput("The transformers engine needs weights, and the card names no source of any.")
    try:
        if is_known(load_config(spec.folder)):
            return DecodingEngine(partial(build_loop, spec.folder, options), context.clock, threads=options.threads)
        causal = load_causal_model(
            spec.folder,
            device=options.device,
            dtype=options.dtype,
            window_tokens=options.context_tokens,
            prefill_tokens=options.prefill_tokens,
            template=options.template,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise Internal(f"The model in {spec.folder} cannot be loaded: {exc}") from exc
    return SequentialEngine(causal, options, context.clock)
