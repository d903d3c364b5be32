"""Losses of the training, weighted by row, and distillation."""

from torch import nn

LOSSES = {
    "classes": nn.CrossEntropyLoss,
    "labels": nn.BCEWithLogitsLoss,
    "values": nn.MSELoss,
}


class WeightedLoss(nn.Module):
    """Mean of a loss over rows, each times its weight, the last column of the target.

    Parameters
    ----------
    kind : {"classes", "labels", "values"}
        Cross-entropy on one class for each row, binary cross-entropy on an indicator
        matrix, or the squared error.
    temperature : float or None
        For distillation, where log-probabilities of a teacher follow the class in the
        target: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural
        network", 2015.
    distill_weight : float
        Weight of the teacher's term; the labels have the rest.
    criterion : type of nn.Module, optional
        In place of those losses, with a value for each row (``reduction="none"``).
    **options
        For the loss, such as ``label_smoothing``.
    """

    def __init__(
        self,
        kind: str,
        temperature=None,
        distill_weight=0.0,
        criterion=None,
        **options,
    ):
        super().__init__()
        self.temperature = temperature
        self.distill_weight = distill_weight
        self.kind = kind
        self.loss = (criterion or LOSSES[kind])(reduction="none", **options)

    def forward(self, output, target):
        target, weight = target[:, :-1], target[:, -1]
        if self.kind == "classes":
            rows = self.loss(output, target[:, 0].long())
            if self.temperature is not None:
                rows = rows + self.distill_weight * (
                    self._from_teacher(output, target[:, 1:]) - rows
                )
        else:
            rows = self.loss(output, target).mean(dim=1)
        # A row that only fills up a batch weighs nothing, and does not count.
        return (rows * weight).sum() / (weight > 0).sum().clamp(min=1)

    def _from_teacher(self, output, teacher):
        heat = self.temperature
        student = nn.functional.log_softmax(output / heat, dim=1)
        teacher = nn.functional.log_softmax(teacher / heat, dim=1)
        gap = (teacher.exp() * (teacher - student)).sum(dim=1)
        # The gradient of softened scores shrinks with the square of the temperature.
        return heat**2 * gap


def criterion_of(net_params: dict) -> type | None:
    """Loss of the user, which ours is to weigh by row."""
    criterion = net_params.get("criterion")
    if isinstance(criterion, nn.Module):
        kind = type(criterion).__name__
        raise ValueError(
            f"net_params has the criterion {criterion!r}, which gives one value for a "
            f"batch. Pass its class, {kind}, and its arguments as 'criterion__<name>': "
            "it is made with reduction='none', since each row has a weight."
        )
    return criterion
