"""Distil the nano teacher into the nano student on this machine's CPU, as with any TRL trainer.

First: dopd-vl prepare --config configs/prepare/nano-vision.yaml
"""

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.common.resources import model_folder
from privileged import load_privileged

args = DopdConfig("runs/from-python", num_generations=4, max_steps=20, max_completion_length=24, learning_rate=1e-4)
trainer = DopdTrainer(
    model=str(model_folder("vision-student")),
    teacher_model=str(model_folder("vision-teacher")),
    args=args,
    train_dataset=load_privileged("runs/data/nano-vision-train"),
)
trainer.train()
trainer.save_model("runs/from-python/student")
