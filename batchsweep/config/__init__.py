"""The YAML file as frozen, validated models.

``load(path)`` gives a :class:`Config` or raises :class:`~batchsweep.errors.ConfigError` with one
line: file, line, key, what is wrong, and the valid choices.
"""

from batchsweep.config.load import load as load
from batchsweep.config.load import parse as parse
from batchsweep.config.models import BanditConfig as BanditConfig
from batchsweep.config.models import Config as Config
from batchsweep.config.models import CorpusConfig as CorpusConfig
from batchsweep.config.models import EmbeddingConfig as EmbeddingConfig
from batchsweep.config.models import EveryLayers as EveryLayers
from batchsweep.config.models import LayerOutput as LayerOutput
from batchsweep.config.models import LocalTask as LocalTask
from batchsweep.config.models import MetricsConfig as MetricsConfig
from batchsweep.config.models import ModelConfig as ModelConfig
from batchsweep.config.models import Pooling as Pooling
from batchsweep.config.models import PullBudget as PullBudget
from batchsweep.config.models import Revisions as Revisions
from batchsweep.config.models import RewardsConfig as RewardsConfig
from batchsweep.config.models import Schedule as Schedule
from batchsweep.config.models import StoreConfig as StoreConfig
from batchsweep.config.models import TaskType as TaskType
from batchsweep.config.place import local_path as local_path
