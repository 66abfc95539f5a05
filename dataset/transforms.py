"""A photo is made into a network's input.

Source: the published code (Kim et al., ICCV 2021).
"""
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image

from wsol.networks import IMAGENET


def fitted(image, way):
    """PIL image -> PIL image of S x S: PIL resizes it, then its centre is taken. way: a record of wsol.preprocessing.

    Sources: torchvision's Resize and CenterCrop, timm's ResizeKeepRatio and CenterCropOrPad; the pixels are theirs.
    """
    size, (across, down, left, top) = way['input_size'], _place(image.size, **way)
    fill = tuple(round(255 * value) for value in way['mean']) if way['fit'] == 'pad' else 0
    square = Image.new('RGB', (size, size), fill)
    square.paste(image.resize((across, down), Image.Resampling[way['interpolation'].upper()]), (-left, -top))
    return square


def _place(photo, fit, resize_size, input_size, **_):
    """A photo's (width, height) -> (width, height) after resizing, and the square's distance from its left and top."""
    if fit == 'crop':
        sides = [max(resize_size, int(resize_size * length / min(photo))) for length in photo]
    elif fit == 'pad':
        ratio = max(length / resize_size for length in photo)
        sides = [max(1, round(length / ratio)) for length in photo]
    else:
        sides = [resize_size] * 2
    return *sides, *(-((input_size - side) // 2) if side < input_size else round((side - input_size) / 2)
                     for side in sides)


@dataclass(frozen=True)
class Transform:
    """A photo -> a network's input, in two steps: bytes in a loader's worker, numbers on the device.

    resize_size: the side R of the square that photos are resized to. crop_size: the side S of the random crop that
    training takes, mirrored or not; None: no crop. normalisation: the network's (mean, deviation). way: a record of
    wsol.preprocessing, how photos become that square; None: the whole photo is resized to it, as published.
    """
    resize_size: int
    crop_size: int | None = None
    normalisation: tuple = IMAGENET
    way: dict | None = None

    def __post_init__(self):
        v2()  # imported here, not by each of a loader's workers

    def __call__(self, image):
        """PIL image -> (3,S,S) float32."""
        return self.normalise(self.crop(self.resize(image)))

    def resize(self, image):
        """PIL image -> (3,R,R) uint8. As published: bilinear with anti-aliasing, within one grey level of PIL's."""
        if self.way is not None:
            return v2().functional.pil_to_tensor(fitted(image, self.way))
        pixels = v2().functional.pil_to_tensor(image)
        return v2().functional.resize(pixels, [self.resize_size] * 2, antialias=True)

    def box(self, photo):
        """(x0,y0,x1,y1): the part of a photo (width, height) that the network sees, in shares of its width and height.
        With the fit 'pad' it is larger than the photo."""
        if self.way is None:
            return 0.0, 0.0, 1.0, 1.0
        size, (across, down, left, top) = self.resize_size, _place(photo, **self.way)
        return left / across, top / down, (left + size) / across, (top + size) / down

    def crop(self, pixels, generator=None):
        """(3,R,R) -> (3,S,S). generator: draws the crop, by default torch's global one. The draws are those of
        torchvision's RandomCrop and RandomHorizontalFlip, which take ten times as long."""
        if self.crop_size is None:
            return pixels
        room = self.resize_size - self.crop_size + 1
        top, left = (int(torch.randint(room, (), generator=generator)) for _ in range(2))
        pixels = pixels[:, top:top + self.crop_size, left:left + self.crop_size]
        return pixels.flip(2) if torch.rand((), generator=generator) < 0.5 else pixels

    def normalise(self, pixels):
        """(...,3,S,S) uint8 -> float32, on its device."""
        mean, deviation = _statistics(tuple(map(tuple, self.normalisation)), pixels.device)
        return pixels.float().div_(255).sub_(mean).div_(deviation)


@cache
def v2():
    """torchvision.transforms.v2. Its import is slow, and a script that only shows its help does not need it."""
    from torchvision.transforms import v2
    return v2


@cache
def _statistics(normalisation, device):
    """Mean and deviation (3,1,1) on a device: sent there once, since sending makes the host wait."""
    return [torch.tensor(values, device=device)[:, None, None] for values in normalisation]


def eval_transform(crop_size, normalisation=IMAGENET, way=None):
    """Published: resize to a square of the crop's size. normalisation, way: as in Transform."""
    return Transform(crop_size, normalisation=normalisation, way=way)


def to_picture(image, normalisation=IMAGENET):
    """A normalised image (3,S,S) -> (S,S,3) in 0..1, to be shown."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in normalisation)
    return (image.cpu() * deviation + mean).clamp(0, 1).permute(1, 2, 0).numpy()
