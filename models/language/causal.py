"""A causal language model, and an answer that it writes step by step. Synchronous; whoever calls it owns the thread."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils.logging import disable_progress_bar

from models.content import Delta, UsageDelta
from models.language.decoding.processors import Processors
from models.language.detokenize import Detokenizer, answer_limit
from models.language.prompts import PromptWriter
from models.ports.generate import GenerateRequest, Sampling

_GREEDY_BELOW = 1e-5
"""Dividing scores by a temperature below this one overflows before it says more than the likeliest token does."""

_NO_TOKENS = torch.LongTensor()  # of what came before; no warper used here looks at it


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalModel:
    """A model with all that it takes to write with it.

    Attributes:
        ends: tokens that end an answer.
        window_tokens: the most tokens of a prompt and its answer together.
        prefill_tokens: the most tokens of a prompt that a step reads.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    prompts: PromptWriter
    ends: frozenset[int]
    window_tokens: int
    prefill_tokens: int

    @property
    def vocabulary(self) -> int:
        """The width of the model's scores."""
        width: int = self.model.config.get_text_config().vocab_size
        return width


def load_config(folder: str) -> PretrainedConfig:
    """Return the configuration of the model in `folder`."""
    config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config


def load_causal_model(
    folder: str,
    *,
    device: str,
    dtype: str,
    window_tokens: int | None,
    prefill_tokens: int | None,
    template: Mapping[str, object],
) -> CausalModel:
    """Load what lies in `folder`: safetensors only; nothing is fetched, and no code that came with a model is run.

    Args:
        folder: as `save_pretrained` of transformers writes it.
        device: a device of torch; `auto` is CUDA where there is one, else the CPU.
        dtype: a dtype's name; `auto` is float32 on a CPU, and on a GPU what the weights were saved in.
        window_tokens: None is the model's own.
        prefill_tokens: None is 512 on a GPU, and 128 on a CPU, where 512 take seconds and are hardly faster by the token.
        template: what the chat template is told besides the conversation.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto" and device == "cpu":
        # bfloat16 is no gain for models small enough for a CPU. SmolLM2-135M on two cores, in milliseconds for a token and
        # for a prompt of 512: Sapphire Rapids, which computes in it, 70 and 374 against 42 and 1158 in float32; Skylake,
        # which emulates it, 81 and 8000 against 99 and 1700. A card of a larger model may say otherwise in its options.
        dtype = "float32"
    disable_progress_bar()  # type: ignore[no-untyped-call]  # the log is no terminal
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=dtype
    )
    ends = model.generation_config.eos_token_id
    return CausalModel(
        model=model.to(device),  # type: ignore[arg-type]  # its decorator hides the signature
        tokenizer=tokenizer,
        prompts=PromptWriter(tokenizer, template),
        ends=frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        window_tokens=window_tokens or model.config.get_text_config().max_position_embeddings,
        prefill_tokens=prefill_tokens or (128 if device == "cpu" else 512),
    )


class CausalAnswer:
    """One answer as it is written: its cache, and how far it has come.

    Attributes:
        prompt_tokens: the length of the prompt.

    Raises:
        LimitExceeded: the conversation fills the window.
    """

    @torch.inference_mode()
    def __init__(self, causal: CausalModel, request: GenerateRequest) -> None:
        prompts = causal.prompts
        prompt = (
            prompts.raw(request.messages)
            if request.raw
            else prompts.tokens(request.messages, continues=request.continues)
        )
        limit = answer_limit(len(prompt), causal.window_tokens, request.sampling)
        self.prompt_tokens = len(prompt)
        self._causal = causal
        self._writer = Detokenizer(
            causal.tokenizer,
            request.sampling,
            ends=causal.ends,
            limit=limit,
            signals=request.signals,
            logprobs=request.logprobs,
        )
        self._unread = torch.tensor([prompt], device=causal.model.device)
        self._cache = DynamicCache(config=causal.model.config)
        self._chooser = _Chooser(request.sampling, causal.model.device)
        self._processors = Processors.of(request.sampling, prompt, causal.vocabulary)

    @property
    def finished(self) -> bool:
        """Whether the last step ended it."""
        return self._writer.finished is not None

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Run the model once: read the next chunk of the prompt or the last token, and once all is read write a token."""
        size = self._causal.prefill_tokens
        chunk, self._unread = self._unread[:, :size], self._unread[:, size:]
        output = self._causal.model(input_ids=chunk, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        if self._unread.shape[1] > 0:
            return []
        scores = output.logits[0, -1].float()
        processors = self._processors
        token = self._chooser.choose(scores if processors is None else processors.apply(scores[None], ())[0])
        if processors is not None:
            processors.accept([token])
        self._unread = torch.tensor([[token]], device=scores.device)
        _, deltas = self._writer.write([token], lambda _: scores)
        if self.finished:
            deltas.insert(-1, UsageDelta(input_tokens=0, output_tokens=self._writer.written))
        return deltas


class _Chooser:
    """Chooses tokens of one answer, by chances of its own, so that no other answer changes them."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._greedy = sampling.temperature < _GREEDY_BELOW
        self._warpers = LogitsProcessorList()
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**64)

    def choose(self, scores: torch.Tensor) -> int:
        """Return a token, given the scores of all of them, shape (vocabulary,)."""
        if self._greedy:
            return int(scores.argmax())
        chances = self._warpers(_NO_TOKENS, scores[None]).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=self._generator))
