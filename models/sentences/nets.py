"""A static student: a table of token vectors and their mean. No layer runs, so that it is as fast as a text is read."""

import torch
from torch import Tensor, nn


class Static(nn.Module):
    """Token ids ``[batch, length]`` and their mask to embeddings ``[batch, width]``.

    Args:
        vocab_size: Number of tokens; with ``student.vocabulary = "corpus"`` kdexport gives it.
        width: Of the embedding, the teacher's.
    """

    def __init__(self, vocab_size: int, width: int = 384) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the tokens' vectors; kdexport normalizes it."""
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        return (self.table(input_ids) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
