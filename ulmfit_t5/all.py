"Everything a notebook wants: `from ulmfit_t5.all import *`"
import numpy as np,pandas as pd,torch
from pathlib import Path
from ulmfit_t5.core import *
from ulmfit_t5.data.datasets import *
from ulmfit_t5.data.tokenizer import *
from ulmfit_t5.data.corpus import *
from ulmfit_t5.data.tables import *
from ulmfit_t5.data.batches import *
from ulmfit_t5.data.blocks import *
from ulmfit_t5.data.loaders import *
from ulmfit_t5.models.layers import *
from ulmfit_t5.models.awd_lstm import *
from ulmfit_t5.models.losses import *
from ulmfit_t5.models.pooling import *
from ulmfit_t5.models.heads import *
from ulmfit_t5.models.checkpoint import *
from ulmfit_t5.models.fastai_weights import *
from ulmfit_t5.train.schedules import *
from ulmfit_t5.train.groups import *
from ulmfit_t5.train.stages import *
from ulmfit_t5.train.unfreeze import *
from ulmfit_t5.train.optimizers import *
from ulmfit_t5.train.callbacks import *
from ulmfit_t5.train.record import *
from ulmfit_t5.train.state import *
from ulmfit_t5.train.resume import *
from ulmfit_t5.artefacts import *
from ulmfit_t5.inference import *
from ulmfit_t5.learner import *
from ulmfit_t5.ulmfit import *
from ulmfit_t5.pretrain import *
import fastai.callback.all # progress bars, lr_find, fine_tune, fit_one_cycle
