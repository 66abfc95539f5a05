"""The registry of attribution methods (METHODS): what each one is, and what it is asked (Query).

Flags, default scales, labels of colour bars, costs and the table in docs/attribution.md are read from a method's
registration.
Letters: B images, K asked classes, C classes, D features, h x w the grid.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import torch

from wsol.contexts import full_precision
from wsol.errors import UserError
from wsol.heads import CAM, Activations

METHODS = {}      # name -> Method; one method may have two names
DERIVED = {}      # name -> the contrast methods that follow from these
MANY = 10         # forwards for a map: a method that takes more is slow
GPU_SHARE = 0.25  # largest share of free GPU memory for image copies in one forward
LOG_ODDS = 'log p(A | x) / p(B | x)'


@dataclass(frozen=True)
class SamplingSettings:
    """How many samples a method takes, and what else its authors let a user choose; the defaults are theirs."""
    smooth_grad_nr_iter: int = 50       # noisy copies
    smooth_grad_sigma: float = 4.0      # the noise's deviation is the image's range divided by this
    integrated_grad_nr_iter: int = 50   # points on the path
    finer_cam_alpha: float = 0.6        # Finer-CAM's strength: how much of the similar classes' scores is subtracted
    finer_cam_references: int = 3       # the number of these classes
    rise_nr_masks: int = 4000           # RISE's masked images


@dataclass(frozen=True)
class Method:
    """An attribution method, or a contrast method, and what is known of its maps.

    compute(query) -> (B,K,h,w); where not per_class, (B,h,w): one map, whatever the class.
    The first paragraph of its docstring is the method's description in docs/attribution.md.
    """
    name: str
    compute: Callable
    head: type = CAM          # CAM: every head defines it; CALM: only those with a prior
    per_class: bool = True
    unit: str = ''            # 'logit', 'probability', 'score' (a class score), 'nats' (log-odds); '': no unit
    bounded: bool = False     # all values lie in 0..1; of contrasts, in -1..1
    signed: bool = False      # a value speaks for the class, or against it
    label: str = ''           # a colour bar's label: {c} stands for the class, {score} for what is explained
    per: str = 'per cell'     # the end of that label
    total: str = ''           # what the cells of a map sum to
    cost: tuple | Callable = (1, 0)  # forwards and backwards of a map; or a function of (SamplingSettings, D)
    explains_score: bool = False     # it explains Query.explained: a class score, or the difference of two
    settings: tuple = ()      # the SamplingSettings that it reads
    random: bool = False      # it draws at random, from the image's seed
    needs_superclasses: bool = False
    difference: str = ''      # the contrast method that subtracts its maps, where it is not called <name>-difference

    @property
    def one_forward(self):
        """Whether its maps are read off one forward for all classes: it takes no gradient and no second forward."""
        return not self.explains_score and self.cost == (1, 0)

    def cost_of(self, settings=None, num_features=2048):
        """(forwards, backwards) of the map of one class of one image."""
        settings = settings or SamplingSettings()
        return self.cost(settings, num_features) if callable(self.cost) else self.cost

    @property
    def slow(self):
        """Whether it takes many forwards for a map, at the default settings."""
        return self.cost_of()[0] > MANY

    @property
    def scale(self):
        """The (norm type, threshold type) of its maps where nothing else is asked: probabilities in 0..1 stay as they
        are, on logarithmic thresholds; all other maps are scaled to 0..1 one by one, with even thresholds."""
        is_probability = self.unit == 'probability' and self.bounded
        return ('clipping', 'log') if is_probability else ('minmax', 'even')

    def label_of(self, c='A', score='the score of {c}'):
        """The label of a colour bar, of the map of a class."""
        label = self.label or (f'{self.name} of {{c}}' if self.per_class else self.name)
        return f'{label.format(c=c, score=score.format(c=c))} {self.per}'.strip()

    def difference_label(self):
        """The label of the map of class A minus the map of class B."""
        first, second = (replace(self, per='').label_of(c) for c in 'AB')
        return f'{first} − {second if len(first) < 26 else "the same of B"} {self.per}'.strip()

    def maps(self, query):
        """The maps of all asked classes: (B,K,h,w)."""
        maps = self.compute(query).detach()
        return maps[:, None].expand(-1, query.classes.shape[1], -1, -1) if maps.ndim == 3 else maps

    def difference_of_maps(self, query):
        """The maps of the classes minus those of the contrast's classes: (B,K,h,w), signed."""
        first, second = self.maps(query.both()).chunk(2, dim=1)
        return first - second

    def contrasts(self):
        """The contrast methods that follow from it, by name: its explanation of s_A - s_B, and its map of class A minus
        its map of class B (published)."""
        derived = {}
        if self.explains_score:
            derived[self.name] = replace(
                self, label=self.label_of('A rather than B', LOG_ODDS), per='', unit='nats' if self.total else '',
                bounded=False, total=self.total.format(score=LOG_ODDS))
        if self.per_class and not self.needs_superclasses and not self.difference:
            name = f'{self.name}-difference'
            derived[name] = replace(self, name=name, compute=self.difference_of_maps, signed=True,
                                    label=self.difference_label(), per='', total='')
        return derived


def register(*names, table=METHODS, **known):
    """Make a function the attribution method of a name, or of several. known: fields of Method."""
    def enter(compute):
        method = Method(names[0], compute, **known)
        table.update(dict.fromkeys(names, method))
        if table is METHODS:
            for name in (method.name, f'{method.name}-difference'):  # of an earlier registration
                DERIVED.pop(name, None)
            DERIVED.update(method.contrasts())
        return compute
    return enter


def find_method(name, head, table=METHODS, kind='attribution'):
    """The Method of a name. head: a class, of HEADS. Raises UserError where the head does not define it."""
    if name not in table:
        raise UserError(f'no {kind} method "{name}"; there are {", ".join(table)}')
    if not issubclass(head, table[name].head):
        defined = ', '.join(key for key, method in table.items() if issubclass(head, method.head))
        raise UserError(f'{head.__name__} does not define {name}, which needs p(z|x); it defines {defined}')
    return table[name]


@dataclass
class Query:
    """What an attribution method is asked."""
    model: CAM                              # or a CALM
    images: torch.Tensor                    # (B,3,H,W)
    classes: torch.Tensor                   # (B,K) int64, the asked classes
    seeds: list                             # of B integers, for methods that draw at random
    superclasses: torch.Tensor | None       # (C,C) bool: row c holds the classes of c's superclass
    settings: SamplingSettings
    contrast: torch.Tensor | None = None    # (B,K) int64: explain the scores of classes minus those of these
    computed: Activations | None = None     # the activations, once the forward has run

    @property
    def activations(self):
        """The one forward that all activation methods share."""
        if self.computed is None:
            with torch.no_grad():
                self.computed = self.model.activations(self.images)
        return self.computed

    def explained(self, scores):
        """The scores that are explained: class scores (N,C) of N versions of the images, B or of one image -> (N,K)."""
        def of(classes):  # a copy: autograd keeps no tensors of inference mode
            return scores.gather(1, classes.expand(len(scores), -1).clone())
        return of(self.classes) if self.contrast is None else self.model.odds(of(self.classes) - of(self.contrast))

    def single(self, index):
        """The same question about one image."""
        def row(values):
            return None if values is None else values[index:index + 1]
        return replace(self, images=row(self.images), classes=row(self.classes), seeds=row(self.seeds),
                       contrast=row(self.contrast), computed=self.computed and Activations(*map(row, self.computed)))

    def both(self):
        """The question about the classes (B,K) and, behind them, about those of the contrast: (B,2K)."""
        return replace(self, classes=torch.cat([self.classes, self.contrast], 1), contrast=None)

    def rows(self, maps):
        """The maps of the asked classes: (B,C,h,w) -> (B,K,h,w)."""
        return maps.gather(1, self.classes[..., None, None].expand(-1, -1, *maps.shape[2:]))

    def superclass_members(self):
        """(B,K,C), 1 for the classes of each asked class's superclass and 0 for others. Raises UserError."""
        if self.superclasses is None:
            raise UserError('superclass maps need superclasses=, which says which classes belong together')
        return self.superclasses.to(self.images)[self.classes]

    def superclass_sums(self, maps):
        """The maps summed over the superclass of each asked class: (B,C,h,w) -> (B,K,h,w)."""
        with full_precision(maps):
            return torch.einsum('bkc,bchw->bkhw', self.superclass_members().to(maps), maps)

    def superclass_means(self, maps):
        """The maps' means over the superclass of each asked class: (B,C,h,w) -> (B,K,h,w)."""
        return self.superclass_sums(maps) / self.superclass_members().sum(2)[..., None, None]


def image_by_image(function):
    """Make a method of one image (query, i) -> (K,h,w) a method of a batch, whose size does not change the memory."""
    @wraps(function)
    def batch(query):
        return torch.stack([function(query.single(index)) for index in range(len(query.images))])
    return batch


def versions_at_a_time(query, usual, numbers_kept):
    """How many versions of an image (noisy copies, masked ones) share a forward. The maps do not depend on this number.

    On a CPU it is `usual`, because larger batches hardly save time. On CUDA it is what fits into GPU_SHARE of the free
    memory, from `usual` to 16 times as many, and a power of two, since cuDNN tries its algorithms anew for each size.
    numbers_kept: how many numbers each pixel of a version takes, beside the maps of the asked classes.
    """
    images = query.images
    if images.device.type != 'cuda':
        return usual
    unused = torch.cuda.memory_reserved(images.device) - torch.cuda.memory_allocated(images.device)  # torch's reserve
    free = torch.cuda.mem_get_info(images.device)[0] + unused
    pixels = images.shape[2] * images.shape[3]
    fitting = int(GPU_SHARE * free / (pixels * (numbers_kept + query.classes.shape[1]) * images.element_size()))
    return min(max(usual, 1 << fitting.bit_length() >> 1), 16 * usual)
