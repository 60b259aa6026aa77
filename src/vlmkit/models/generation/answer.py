"""An answer that is being written."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from vlmkit.models.generation.request import FinishReason, Generated, Request, TokenLogprob
from vlmkit.models.generation.text import GrowingText


class Answer:
    """What has been made so far for a request.

    Attributes:
        request: which it answers.
        token_ids: so far.
        finish_reason: None while it goes on.
    """

    def __init__(
        self,
        request: Request,
        stop_ids: Collection[int],
        tokenizer: Tokenizer | None,
        streams: bool,
    ) -> None:
        """Begin.

        Args:
            request: to be answered.
            stop_ids: the model's own, for a request without any.
            tokenizer: decodes.
            streams: whether text is wanted before the end.
        """
        self.request = request
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        decoding = request.decoding
        self._most = decoding.max_new_tokens
        self._stop_ids = frozenset(stop_ids if decoding.stop_ids is None else decoding.stop_ids)
        self._stopped_by: int | str | None = None
        self._logprobs: list[TokenLogprob] = []
        self._tokenizer = tokenizer
        self._text: GrowingText | None = None
        if tokenizer is not None and (streams or decoding.stop):
            self._text = GrowingText(tokenizer, decoding.stop)

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None

    @property
    def logprobs(self) -> Sequence[TokenLogprob]:
        """One per token so far, if they were asked for; not to be changed."""
        return self._logprobs

    def add(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """Take the next token; whether that was the last."""
        if token in self._stop_ids:
            self.finish_reason, self._stopped_by = FinishReason.STOP, token
        else:
            self.token_ids.append(token)
            if logprob is not None:
                self._logprobs.append(logprob)
            if self._text is not None and self._text.add(token):
                self.finish_reason = FinishReason.STOP_STRING
                self._stopped_by = self._text.stopped_by
            elif len(self.token_ids) == self._most:
                self.finish_reason = FinishReason.LENGTH
        if self.finished and self._text is not None:
            self._text.close()
        return self.finished

    def release_text(self) -> str:
        """Text that is new since the last call and stays, whatever follows; for an engine that streams."""
        assert self._text is not None
        return self._text.release()

    def result(self) -> Generated:
        """The whole answer, once it is finished."""
        assert self.finish_reason is not None
        text = None
        if self._text is not None:
            text = self._text.text
        elif self._tokenizer is not None:
            text = self._tokenizer.decode(self.token_ids, skip_special_tokens=True)
        wanted = self.request.decoding.top_logprobs is not None
        return Generated(
            token_ids=tuple(self.token_ids),
            text=text,
            finish_reason=self.finish_reason,
            stopped_by=self._stopped_by,
            logprobs=tuple(self._logprobs) if wanted else None,
        )
