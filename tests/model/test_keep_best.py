from types import SimpleNamespace

import torch

from isd.model._keep_best import KeepBest


def test_the_weights_of_the_lowest_loss_are_taken_back_and_training_stops_after_patience():
    layer = torch.nn.Linear(2, 1)
    plan, trainer = SimpleNamespace(module=layer), SimpleNamespace(sanity_checking=False, should_stop=False)
    keep = KeepBest(patience=2)
    stopped = []
    for step, loss in enumerate([3.0, 1.0, 2.0, 1.5]):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        trainer.callback_metrics = {"validation_loss": torch.tensor(loss)}
        keep.on_validation_end(trainer, plan)
        stopped.append(trainer.should_stop)
    assert stopped == [False, False, False, True]
    keep.on_train_end(trainer, plan)
    assert (layer.weight == 1.0).all()


def test_without_validation_weights_stay():
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    plan, trainer = SimpleNamespace(module=layer), SimpleNamespace(sanity_checking=False, callback_metrics={})
    keep = KeepBest(patience=2)
    keep.on_validation_end(trainer, plan)
    keep.on_train_end(trainer, plan)
    assert torch.equal(layer.weight, before)
