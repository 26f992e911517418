"""QAE for TRL's ``GRPOTrainer``: ``QAETrainer`` and ``QAEConfig`` in place of TRL's two.

Needs ``trl`` 1.16 or later, which ``import qae`` alone does not import.
"""

from qae.trl.config import QAEConfig
from qae.trl.trainer import QAEMixin, QAETrainer

__all__ = ["QAEConfig", "QAEMixin", "QAETrainer"]
