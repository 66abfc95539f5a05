"""CALM's training loss in one step: the values and gradients of heads.py's equations, in the memory of one map.

Plainly written, the graph holds the logits, their log-softmax, its exponential and the gradients of each, all
(B,C,h,w). But the loss reads the row of the true class alone, and its gradient by the logits is

    d log p(y*|x,z) / d logits_c(z) = 1[c = y*] - p(c|x,z)

so that p(y|x,z) is all that has to be kept. Prediction and attention are one matrix product of C + 1 rows. Letters:
B images, Z = h*w locations, C classes, D features, R rows.
"""
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

MULTIPLE = 16  # of rows: MKL needs 1.6 times as long for a product of 201 rows as for one of 208


def loss_and_scores(features, classifier, attention, labels, equations):
    """CALM's loss () and its class scores (B,C), log p(y|x) or, where that is less, the smallest float's logarithm.

    features: (B,D,h,w), copied only where they are not in channels-last order. classifier, attention: the 1x1
    convolutions. labels: (B,). equations: a function (log p(y*|x,z) (B,h,w), attention logits (B,h,w)) -> loss (),
    p(z|x) (B,h,w).
    """
    num_classes, grid = len(classifier.weight), features.shape[2:]
    spare = -(num_classes + 1) % MULTIPLE
    weight = torch.cat([classifier.weight[:, :, 0, 0], attention.weight[:, :, 0, 0],
                        classifier.weight.new_zeros(spare, features.shape[1])])  # (R,D)
    bias = torch.cat([classifier.bias, attention.bias, classifier.bias.new_zeros(spare)])  # (R,)
    rows = features.movedim(1, -1).flatten(1, 2)  # (B,Z,D)

    def of_grid(log_row, attention_row):
        loss, prior = equations(log_row.unflatten(1, grid), attention_row.unflatten(1, grid))
        return loss, prior.flatten(1)
    return _RowLoss.apply(rows, weight, bias, labels, num_classes, of_grid)


class _RowLoss(torch.autograd.Function):
    """The same on (B,Z,D); of the R rows of weight and bias, C are the classes', the next is the attention's."""

    @staticmethod
    def forward(ctx, features, weight, bias, labels, num_classes, equations):
        logits = F.linear(features, weight, bias)  # (B,Z,R)
        true = labels[:, None, None].expand(-1, logits.shape[1], 1)  # (B,Z,1)
        of_classes, attention = logits[..., :num_classes], logits[..., num_classes]
        conditional = of_classes.softmax(-1)  # (B,Z,C), p(y|x,z)
        # log-sum-exp, from the largest logit and its probability, which is 1 / C at least
        normaliser = of_classes.amax(-1) - conditional.amax(-1).log()  # (B,Z)
        log_row = of_classes.gather(2, true)[..., 0] - normaliser  # (B,Z)
        with torch.inference_mode(False), torch.enable_grad():  # small: two numbers a location
            log_row, attention = log_row.clone().requires_grad_(), attention.clone().requires_grad_()
            loss, prior = equations(log_row, attention)
            gradients = torch.autograd.grad(loss, (log_row, attention), materialize_grads=True)
        probs = torch.bmm(prior.detach()[:, None], conditional)[:, 0]  # (B,C)
        scores = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
        ctx.save_for_backward(features, weight, true, conditional, *gradients)
        ctx.mark_non_differentiable(scores)
        return loss.detach(), scores

    @staticmethod
    @once_differentiable
    def backward(ctx, by_loss, _):
        features, weight, true, conditional, by_log_row, by_attention = ctx.saved_tensors
        num_classes = conditional.shape[2]
        by_log_row, by_attention = by_log_row[..., None] * by_loss, by_attention * by_loss
        by_logits = features.new_empty(*conditional.shape[:2], len(weight))  # (B,Z,R)
        torch.mul(conditional, -by_log_row, out=by_logits[..., :num_classes])
        by_logits.scatter_add_(2, true, by_log_row)
        by_logits[..., num_classes] = by_attention
        by_logits[..., num_classes + 1:] = 0
        flat = by_logits.flatten(0, 1)  # (B*Z,R)
        by_features = by_logits @ weight if ctx.needs_input_grad[0] else None
        return by_features, flat.T @ features.flatten(0, 1), flat.sum(0), None, None, None
