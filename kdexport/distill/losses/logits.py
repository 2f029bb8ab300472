"""Losses that compare the outputs of student and teacher.

All take logits [batch, classes] of any float type, compute in fp32 or wider, pass no gradient to the teacher and
return a scalar. Notation: z student logits, v teacher logits, T temperature, p = softmax(z/T), q = softmax(v/T).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdexport.distill.losses.checks import logits_pair, positive_temperature, several_samples
from kdexport.errors import KDExportError
from kdexport.tasks.classification import check_class_ids


def soft_targets(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, standardize: bool = False
) -> Tensor:
    """KL divergence of the softened outputs: ``T² · mean over samples of Σ_c q_c (log q_c - log p_c)``.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. The paper minimizes the
    cross-entropy with soft targets times T²; the KL differs from it by the teacher's entropy, a constant, and is 0
    where the student has arrived. ``torch.nn.KLDivLoss()`` as it stands divides by the number of classes as well.

    With ``standardize`` each row of z and v is first brought to mean 0 and standard deviation 1 over the classes: Sun
    et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1. The standard deviation divides by the
    number of classes as in the paper; the authors' code divides by one less, which is the same as a temperature
    higher by the root of classes / (classes - 1). They give the term a weight of 9 at T = 2.

    Args:
        student_logits: [batch, classes].
        teacher_logits: [batch, classes].
        temperature: T, above 0.
        standardize: Standardize the logits first.

    Raises:
        KDExportError: Shapes or class counts differ, or the temperature is not above 0.
    """
    positive_temperature(temperature, "soft_targets")
    student, teacher = logits_pair(student_logits, teacher_logits, "soft_targets")
    if standardize:
        student, teacher = _standardized(student), _standardized(teacher)
    return _kl(teacher / temperature, student / temperature) * temperature**2


def hard_targets(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's choice: ``mean over samples of -log softmax(z)[argmax v]``.

    Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention" (DeiT),
    equation 3, its second half; the paper gives labels and this term a weight of 1/2 each and reads it from a
    distillation token where the student has one.

    Args:
        student_logits: [batch, classes].
        teacher_logits: [batch, classes].

    Raises:
        KDExportError: Shapes or class counts differ.
    """
    student, teacher = logits_pair(student_logits, teacher_logits, "hard_targets")
    return F.cross_entropy(student, teacher.argmax(dim=1))


def logit_mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared error of the logits: ``mean over samples and classes of (z - v)²``.

    Kim et al. 2021, "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation",
    equation 3, which sums over the classes: its value is ``classes`` times this one. The mean keeps the weight's
    meaning when the number of classes changes.

    Args:
        student_logits: [batch, classes].
        teacher_logits: [batch, classes].

    Raises:
        KDExportError: Shapes or class counts differ.
    """
    student, teacher = logits_pair(student_logits, teacher_logits, "logit_mse")
    return F.mse_loss(student, teacher)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation: ``T² · mean over samples of alpha · KL(b_T ‖ b_S) + beta · KL(q̂ ‖ p̂)``.

    b = (p_label, 1 - p_label) is the target class against all others; p̂ and q̂ are softmaxes over the other classes
    alone. Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7. ``alpha = 1`` and ``beta = 1 - q_label``
    would give soft targets again (equation 6).

    The authors reduce in the same way. Their code hides the label by subtracting 1000 from its logit and takes
    log(1 - p) of a rounded p, which is infinite for a sure network; here both are computed on the logits themselves.
    They also ramp the term up over the first 20 of 240 epochs: ``schedule = "warmup"`` of the recipe's term.

    Args:
        student_logits: [batch, classes], at least 2 classes.
        teacher_logits: [batch, classes].
        labels: int64 [batch]; a sample whose label is negative has none and is left out of the mean.
        alpha: Weight of the target-class part.
        beta: Weight of the part among the other classes.
        temperature: T, above 0.

    Raises:
        KDExportError: Shapes or class counts differ, labels are not one class per sample, or T is not above 0.
    """
    positive_temperature(temperature, "dkd")
    student, teacher = logits_pair(student_logits, teacher_logits, "dkd")
    check_class_ids(labels, student, "dkd")
    if student.shape[1] < 2:
        raise KDExportError(
            "dkd sets the labelled class against the others, and there is only one class",
            hint="use binary_soft_targets for a single output",
        )
    student, teacher = student / temperature, teacher / temperature
    labelled, labels = labels >= 0, labels.clamp(min=0)
    other_student, other_teacher = _without(student, labels), _without(teacher, labels)
    target = _kls(_one_against_rest(teacher, other_teacher, labels), _one_against_rest(student, other_student, labels))
    rows = torch.where(labelled, alpha * target + beta * _kls(other_teacher, other_student), 0)
    return rows.sum() / labelled.sum().clamp(min=1) * temperature**2


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Correlation in place of equality: ``T² · (beta · mean_i(1 - ρ(p_i, q_i)) + gamma · mean_c(1 - ρ(p_·c, q_·c)))``.

    ρ is Pearson's correlation: the first over the classes of each sample, the second over the samples of each class.
    Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 6 to 10. T² is in the authors' code,
    not in those equations. A row or column that does not vary has no correlation: it counts as 0 and passes no
    gradient, where the authors' 1e-8 in the denominator passes one of up to 1e8.

    Args:
        student_logits: [batch, classes], at least 2 samples.
        teacher_logits: [batch, classes].
        beta: Weight of the inter-class part (within a sample).
        gamma: Weight of the intra-class part (within a class).
        temperature: T, above 0.

    Raises:
        KDExportError: Shapes or class counts differ, the batch holds one sample, or T is not above 0.
    """
    positive_temperature(temperature, "dist")
    student, teacher = logits_pair(student_logits, teacher_logits, "dist")
    several_samples(student, "dist")
    student, teacher = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    inter = 1 - _correlation(student, teacher).mean()
    intra = 1 - _correlation(student.T, teacher.T).mean()
    return (beta * inter + gamma * intra) * temperature**2


def binary_soft_targets(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Soft targets where each class is a yes or no of its own: ``T² · mean over samples and classes of KL(β_q ‖ β_p)``.

    β_p = (σ(z/T), 1 - σ(z/T)): Hinton 2015 for a sigmoid in place of the softmax, as multi-label networks have it. The
    mean over the classes matches binary cross-entropy's, so that both weights keep their meaning.

    Args:
        student_logits: [batch, classes].
        teacher_logits: [batch, classes].
        temperature: T, above 0.

    Raises:
        KDExportError: Shapes or class counts differ, or the temperature is not above 0.
    """
    positive_temperature(temperature, "binary_soft_targets")
    student, teacher = logits_pair(student_logits, teacher_logits, "binary_soft_targets")
    student, teacher = student / temperature, teacher / temperature
    yes = F.sigmoid(teacher) * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = F.sigmoid(-teacher) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (yes + no).mean() * temperature**2


def _kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)), mean over samples."""
    return _kls(target_logits, logits).mean()


def _kls(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) ‖ softmax(logits)) of each sample; both as log-probabilities, so finite at any size."""
    logs = F.log_softmax(logits, dim=1), F.log_softmax(target_logits, dim=1)
    return F.kl_div(*logs, reduction="none", log_target=True).sum(dim=1)


def _standardized(logits: Tensor) -> Tensor:
    """Return each row at mean 0 and standard deviation 1; a constant row as zeros with no gradient."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    # Where nothing varies the authors divide by 1e-7, and the gradient of a zero-initialized head is about 1e6.
    vary = _varies(logits)[:, None]
    return torch.where(vary, centred / torch.where(vary, centred.square().mean(dim=1, keepdim=True), 1).sqrt(), 0)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits of the classes other than the label, [batch, classes - 1]."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(logits.shape[0], -1)
    return logits.gather(1, columns + (columns >= labels[:, None]).long())


def _one_against_rest(logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Return two logits per sample whose softmax is (p_label, 1 - p_label)."""
    return torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of a with the same row of b; 0, with no gradient, where one is constant."""
    vary = _varies(a) & _varies(b)
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    norms = torch.where(vary, a.square().sum(dim=1), 1).sqrt() * torch.where(vary, b.square().sum(dim=1), 1).sqrt()
    return torch.where(vary, (a * b).sum(dim=1) / norms, 0)


def _varies(rows: Tensor) -> Tensor:
    """Return for each row whether it varies by more than its rounding, [rows]."""
    rows = rows.detach()
    limits = torch.finfo(rows.dtype)
    spread = (rows - rows.mean(dim=1, keepdim=True)).square().mean(dim=1)
    return (spread > (4 * limits.eps * rows.abs().amax(dim=1)).square()) & (spread > limits.tiny)
