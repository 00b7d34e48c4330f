"""What every stage needs of the machine: command line and console, devices, processes, text, whole files."""

from clip_finetuning import load_on_use

__getattr__ = load_on_use(__name__)
