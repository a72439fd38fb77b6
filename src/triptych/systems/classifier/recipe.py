"""Training of a small ResNet on labelled pictures, the judge of conditional samples."""

from functools import partial

import torch

from triptych import runtime
from triptych.data.order.batches import take_in_order
from triptych.data.sources import open_train_and_test
from triptych.nn.loss import Loss
from triptych.systems.classifier.model import Classifier, ClassifierConfig, objective
from triptych.systems.classifier.request import TrainClassifier
from triptych.train import checkpoint
from triptych.train.conditioning import build_card, choose_condition
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.weights.loaded import Load

HELD_OUT = 10_000  # most test pictures for the accuracy
BATCH = 500  # pictures of one forward pass


def build(request: TrainClassifier, world: World, load: Load) -> Recipe:
    """A classifier and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    condition = choose_condition("label", source, required=True)
    config = ClassifierConfig(*source.info.shape, (condition.size,), request.widths)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Classifier(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        return objective(model, batch["image"], batch["label"], shift=request.shift)

    @torch.inference_mode()
    def evaluate(module: Classifier) -> dict[str, float]:
        correct = count = 0
        for batch in take_in_order(test, HELD_OUT, BATCH):
            (logits,) = module(batch["image"].to(device))
            correct += int((logits.argmax(1).cpu() == batch["label"]).sum())
            count += len(logits)
        return {"test_accuracy": correct / count}

    optimizer = adam(model, request.learning_rate, weight_decay=request.weight_decay)
    chance = torch.log(torch.tensor(float(condition.size))).item()
    card = build_card("classifier", config, source, condition)
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance=f"before learning: loss {chance:.2f}, accuracy {1 / condition.size:.2f}",
        evaluate=evaluate,
        notes=data_notes(source, training),
    )
