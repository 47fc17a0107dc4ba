"""Model tests are light on a shared machine and never leave it."""

import os

import torch

torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
