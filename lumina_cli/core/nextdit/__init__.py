"""Unified Next-DiT: the network, its published sizes, and its weights in every dialect."""

from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.convert import load_transformer, save_transformer
from lumina_cli.core.nextdit.model import NextDiT
from lumina_cli.core.nextdit.sequence import EncodedText

__all__ = ["EncodedText", "NextDiT", "NextDiTConfig", "load_transformer", "save_transformer"]
