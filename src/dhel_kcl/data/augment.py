"""Compiled image operations and the random draws behind them.

Every draw is a hash of (epoch key, image, view, operation, counter), so a view does not depend on threads, batches or
the order of images, and switching one operation off does not change the draws of the others.

All kernels are in this one module because numba's cache only notices changes to the file of the compiled function.
"""

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit

from dhel_kcl.errors import InputError
from dhel_kcl.files import private_folder

Pixels = npt.NDArray[np.uint8]
Integer = int | np.integer[Any]

CROP, FLIP, JITTER, JITTER_ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(8)
GRAYSCALE, BLUR, BLUR_SIGMA, SOLARISATION, SHIFT = range(8, 13)
"""Operations that draw random numbers; the value is part of the key of each draw."""

BILINEAR, BICUBIC = range(2)
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}

# PIL resamples 8-bit images with weights in this fixed-point precision.
WEIGHT_BITS = 32 - 8 - 2

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


class ViewParameters(NamedTuple):
    """Parameters of a view; an operation with probability 0 is off.

    Without `crop`, the view has the evaluation geometry: the whole image if it has the size of the view, otherwise the
    centre of the image after its shorter side is resized to `evaluation_resize` pixels.
    """

    crop: bool
    scale_low: float
    scale_high: float
    ratio_low: float
    ratio_high: float
    resampling: int
    evaluation_resize: int
    shift: int
    flip_probability: float
    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale_probability: float
    blur_probability: float
    sigma_low: float
    sigma_high: float
    solarisation_probability: float
    solarisation_threshold: int


def _find_cache() -> None:
    """Give numba a cache folder if it finds none; by default it uses this package's folder or the user's cache.

    Raises:
        InputError: the environment names a folder that is not writable, or no folder can be created.
    """
    if chosen := numba.config.CACHE_DIR:  # type: ignore[attr-defined] # numba reads it from the environment
        try:
            Path(chosen).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=chosen).close()
        except OSError as error:
            raise InputError(f"{chosen}: NUMBA_CACHE_DIR cannot be written ({error.strerror}); name another") from error
        return
    try:
        njit(cache=True)(_find_cache)  # compiles nothing yet
    except RuntimeError:
        numba.config.CACHE_DIR = str(private_folder("numba"))  # type: ignore[attr-defined]


_find_cache()
_compiled = njit(cache=True, fastmath=False, nogil=True, error_model="numpy")


@_compiled
def splitmix64(state: Integer, counter: Integer) -> Integer:
    """Return output number `counter` of the splitmix64 generator (Steele et al., OOPSLA 2014) seeded with `state`."""
    z = np.uint64(state) + (np.uint64(counter) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _SHIFT_30)) * _MIX_1
    z = (z ^ (z >> _SHIFT_27)) * _MIX_2
    return z ^ (z >> _SHIFT_31)


@_compiled
def view_key(epoch_key: Integer, index: Integer, view: Integer) -> Integer:
    """Return the key of one view of one image in one epoch."""
    return splitmix64(splitmix64(epoch_key, index), view)


@_compiled
def uniform(key: Integer, operation: Integer, draw: Integer) -> float:
    """Return draw number `draw` of an operation of the view with this key, uniform in [0, 1)."""
    return np.float64(splitmix64(splitmix64(key, operation), draw) >> _SHIFT_11) * 2.0**-53


@_compiled
def uniform_between(key: Integer, operation: Integer, draw: Integer, low: float, high: float) -> float:
    """Draw uniformly from [low, high)."""
    return low + (high - low) * uniform(key, operation, draw)


@_compiled
def crop_box(
    key: Integer, height: int, width: int, scale_low: float, scale_high: float, ratio_low: float, ratio_high: float
) -> tuple[int, int, int, int]:
    """Sample the box of a random resized crop as torchvision does.

    Try ten times to draw an area share from [scale_low, scale_high] and a log-uniform aspect ratio (width / height); if
    no box fits, take the largest central box with an allowed ratio.

    Returns:
        top, left, height and width in pixels.
    """
    for attempt in range(10):
        area = height * width * uniform_between(key, CROP, 4 * attempt, scale_low, scale_high)
        ratio = math.exp(uniform_between(key, CROP, 4 * attempt + 1, math.log(ratio_low), math.log(ratio_high)))
        box_width = int(np.rint(math.sqrt(area * ratio)))
        box_height = int(np.rint(math.sqrt(area / ratio)))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(uniform(key, CROP, 4 * attempt + 2) * (height - box_height + 1))
            left = int(uniform(key, CROP, 4 * attempt + 3) * (width - box_width + 1))
            return top, left, box_height, box_width
    box_height, box_width = height, width
    if width / height < ratio_low:
        box_height = max(1, int(np.rint(width / ratio_low)))
    elif width / height > ratio_high:
        box_width = max(1, int(np.rint(height * ratio_high)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@_compiled
def _filter_weight(x: float, resampling: int) -> float:
    x = abs(x)
    if resampling == BILINEAR:
        return max(0.0, 1.0 - x)
    # Keys' cubic convolution with a = -1/2, the value PIL uses.
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@_compiled
def _resampling_weights(
    length: int, full: int, first: int, count: int, resampling: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the input weights of outputs first .. first + count - 1 when `length` pixels become `full` pixels.

    Returns:
        The first input and the number of inputs, (count, 2), and the fixed-point weights, (count, widest).
    """
    scale = length / full
    stretch = max(scale, 1.0)
    radius = (1.0 if resampling == BILINEAR else 2.0) * stretch
    spans = np.empty((count, 2), np.int64)
    weights = np.zeros((count, 2 * math.ceil(radius) + 1), np.int32)
    exact = np.empty(weights.shape[1], np.float64)
    for output in range(count):
        center = (first + output + 0.5) * scale
        start = max(0, int(center - radius + 0.5))
        stop = min(length, int(center + radius + 0.5))
        total = 0.0
        for tap in range(stop - start):
            exact[tap] = _filter_weight((start + tap - center + 0.5) / stretch, resampling)
            total += exact[tap]
        for tap in range(stop - start):
            value = exact[tap] / total * (1 << WEIGHT_BITS)
            weights[output, tap] = int(value + 0.5) if value >= 0 else int(value - 0.5)
        spans[output, 0], spans[output, 1] = start, stop - start
    return spans, weights


@_compiled
def _to_byte(accumulated: int) -> int:
    return min(255, max(0, accumulated >> WEIGHT_BITS))


@_compiled
def resize_window(
    image: Pixels, full_height: int, full_width: int, top: int, left: int, resampling: int, out: Pixels
) -> None:
    """Write the part of the resized image that `out` covers, antialiased and rounded as PIL does, rows first.

    Each pass runs along contiguous memory so that the compiler can vectorise it: the first over the rows of a
    transposed copy, the second over columns.

    Args:
        image: (H, W, 3) input.
        full_height: height of the whole resized image.
        full_width: width of the whole resized image.
        top: row of the resized image that is the first row of `out`.
        left: column of the resized image that is the first column of `out`.
        resampling: BILINEAR or BICUBIC.
        out: (3, h, w) output.
    """
    rows, columns = out.shape[1], out.shape[2]
    row_spans, row_weights = _resampling_weights(image.shape[0], full_height, top, rows, resampling)
    column_spans, column_weights = _resampling_weights(image.shape[1], full_width, left, columns, resampling)
    first_row, first_column = row_spans[0, 0], column_spans[0, 0]
    box = image[
        first_row : row_spans[rows - 1, 0] + row_spans[rows - 1, 1],
        first_column : column_spans[columns - 1, 0] + column_spans[columns - 1, 1],
    ]
    height, width = box.shape[0], box.shape[1]
    upright = np.empty((width, 3, height), np.uint8)
    for row in range(height):
        for column in range(width):
            for channel in range(3):
                upright[column, channel, row] = box[row, column, channel]
    lines = upright.reshape(width, 3 * height)
    narrowed = np.empty((columns, 3 * height), np.uint8)
    sums = np.empty(3 * height, np.int32)
    for column in range(columns):
        _weighted_sum(
            lines, column_spans[column, 0] - first_column, column_spans[column, 1], column_weights[column], sums
        )
        line = narrowed[column]
        for position in range(3 * height):
            line[position] = _to_byte(sums[position])
    level = np.empty((height, 3, columns), np.uint8)
    turned = narrowed.reshape(columns, 3, height)
    for column in range(columns):
        for channel in range(3):
            for row in range(height):
                level[row, channel, column] = turned[column, channel, row]
    lines = level.reshape(height, 3 * columns)
    sums = np.empty(3 * columns, np.int32)
    for row in range(rows):
        _weighted_sum(lines, row_spans[row, 0] - first_row, row_spans[row, 1], row_weights[row], sums)
        for channel in range(3):
            line, part = out[channel, row], sums[channel * columns : (channel + 1) * columns]
            for column in range(columns):
                line[column] = _to_byte(part[column])


@_compiled
def _weighted_sum(
    lines: Pixels, first: int, count: int, weights: npt.NDArray[np.int32], sums: npt.NDArray[np.int32]
) -> None:
    """Write the weighted sum of `count` lines from `first` on, plus one half so that the later shift rounds."""
    sums[:] = 1 << (WEIGHT_BITS - 1)
    for tap in range(count):
        weight, line = weights[tap], lines[first + tap]
        for position in range(len(sums)):
            sums[position] += np.int32(weight * np.int32(line[position]))


@_compiled
def evaluation_view(image: Pixels, shorter_side: int, out: Pixels) -> None:
    """Write the whole image if it has the size of `out`, else its centre after a resize to `shorter_side`.

    Args:
        image: (H, W, 3) input.
        shorter_side: length of the shorter side after the resize, in pixels.
        out: (3, h, w) output.
    """
    height, width = image.shape[0], image.shape[1]
    rows, columns = out.shape[1], out.shape[2]
    if height == rows and width == columns:
        for row in range(height):
            for column in range(width):
                for channel in range(3):
                    out[channel, row, column] = image[row, column, channel]
        return
    if height <= width:
        full_height, full_width = shorter_side, int(shorter_side * width / height)
    else:
        full_height, full_width = int(shorter_side * height / width), shorter_side
    top = int(np.rint((full_height - rows) / 2))
    left = int(np.rint((full_width - columns) / 2))
    resize_window(image, full_height, full_width, top, left, BICUBIC, out)


@_compiled
def shift_offset(key: Integer, axis: int, most: int) -> int:
    """Draw a whole number of pixels in [-most, most]."""
    return int(uniform(key, SHIFT, axis) * (2 * most + 1)) - most


@_compiled
def shift_reflected(planes: Pixels, down: int, right: int) -> None:
    """Shift the content of (3, S, S) planes; fill the gap with its mirror image, without repeating the border.

    Args:
        planes: changed in place.
        down: pixels, in (-S, S); negative moves up.
        right: pixels, in (-S, S); negative moves left.
    """
    size = planes.shape[1]
    last = size - 1
    original = planes.copy()
    for row in range(size):
        source_row = last - abs(last - abs(row - down))
        for column in range(size):
            source_column = last - abs(last - abs(column - right))
            for channel in range(3):
                planes[channel, row, column] = original[channel, source_row, source_column]


# The colour operations below work in place on (3, H, W) planes. They compute in float32, in which products of bytes and
# ITU-R 601 sums are exact, and without branches, so that the compiler vectorises them.

_ZERO, _HALF, _ONE, _TWO, _FOUR, _WHITE = (np.float32(value) for value in (0, 0.5, 1, 2, 4, 255))
_RED, _GREEN, _BLUE, _LUMA_HALF, _LUMA_UNIT = (np.float32(value) for value in (19595, 38470, 7471, 0x8000, 2.0**-16))


@_compiled
def _luma(red: Integer, green: Integer, blue: Integer) -> Integer:
    # ITU-R 601-2 in 16-bit fixed point, like PIL's conversion to mode L; below 2^24, so exact in float32.
    exact = _RED * np.float32(red) + _GREEN * np.float32(green) + _BLUE * np.float32(blue) + _LUMA_HALF
    return np.int32(exact * _LUMA_UNIT)


@_compiled
def _blend(degenerate: np.float32, value: np.float32, factor: np.float32) -> Integer:
    # PIL truncates.
    blended = degenerate + factor * (value - degenerate)
    blended = _ZERO if blended < _ZERO else blended
    blended = _WHITE if blended > _WHITE else blended
    return np.int32(blended)


@_compiled
def _blend_with_level(planes: Pixels, level: int, factor: float) -> None:
    flat, degenerate, single = planes.reshape(planes.size), np.float32(level), np.float32(factor)
    for position in range(len(flat)):
        flat[position] = _blend(degenerate, np.float32(flat[position]), single)


@_compiled
def adjust_brightness(planes: Pixels, factor: float) -> None:
    """Blend with black."""
    _blend_with_level(planes, 0, factor)


@_compiled
def adjust_contrast(planes: Pixels, factor: float) -> None:
    """Blend with the rounded mean of the grey image."""
    red, green, blue = _channels(planes)
    total = 0
    for position in range(len(red)):
        total += _luma(red[position], green[position], blue[position])
    _blend_with_level(planes, int(total / len(red) + 0.5), factor)


@_compiled
def adjust_saturation(planes: Pixels, factor: float) -> None:
    """Blend with the grey image; factor 0 makes the image grey."""
    red, green, blue = _channels(planes)
    single = np.float32(factor)
    for position in range(len(red)):
        grey = np.float32(_luma(red[position], green[position], blue[position]))
        red[position] = _blend(grey, np.float32(red[position]), single)
        green[position] = _blend(grey, np.float32(green[position]), single)
        blue[position] = _blend(grey, np.float32(blue[position]), single)


@_compiled
def adjust_hue(planes: Pixels, shift: float) -> None:
    """Rotate the hue by `shift` full circles (-0.5 to 0.5), using PIL's 8-bit HSV and its rounding."""
    reds, greens, blues = _channels(planes)
    steps = np.int32(shift * 255)
    for position in range(len(reds)):
        red, green, blue = np.float32(reds[position]), np.float32(greens[position]), np.float32(blues[position])
        hue, saturation, value = _to_hsv(red, green, blue)
        turned = (hue + steps) & np.int32(255)
        reds[position], greens[position], blues[position] = _to_rgb(turned, saturation, value)


@_compiled
def _to_hsv(red: np.float32, green: np.float32, blue: np.float32) -> tuple[Integer, Integer, np.float32]:
    """Return hue and saturation (0 to 255) and the brightest channel; float32 and float64 are mixed as in PIL."""
    highest = red if red > green else green
    highest = highest if highest > blue else blue
    lowest = red if red < green else green
    lowest = lowest if lowest < blue else blue
    chroma = highest - lowest
    divisor = chroma if chroma > _ZERO else _ONE
    from_red, from_green, from_blue = highest - red, highest - green, highest - blue
    is_red, is_green = from_red == _ZERO, from_green == _ZERO
    ahead = from_blue if is_red else (from_red if is_green else from_green)
    behind = from_green if is_red else (from_blue if is_green else from_red)
    first = _ZERO if is_red else (_TWO if is_green else _FOUR)
    sector = np.float32(np.float64(first) + np.float64(ahead / divisor) - np.float64(behind / divisor))
    turn = np.float64(sector) / 6.0 + 1.0
    turn = turn - 1.0 if turn >= 1.0 else turn
    hue = np.int32(np.float64(np.float32(turn)) * 255.0)
    brightest = highest if highest > _ZERO else _ONE
    return hue, np.int32(np.float64(chroma / brightest) * 255.0), highest


@_compiled
def _to_rgb(hue: Integer, saturation: Integer, value: np.float32) -> tuple[Integer, Integer, Integer]:
    """Invert `_to_hsv`; the sixth of the colour wheel in which the hue lies determines the role of each channel."""
    place = np.float32(np.float64(hue) * 6.0 / 255.0)
    face = np.int32(place)
    part = place - np.float32(face)
    share = np.float32(np.float64(saturation) / 255.0)
    exact = np.float64(value)
    top = np.int32(value)
    low = np.int32(exact * (1.0 - np.float64(share)) + 0.5)
    falling = np.int32(exact * (1.0 - np.float64(share * part)) + 0.5)
    rising = np.int32(exact * (1.0 - np.float64(share) * (1.0 - np.float64(part))) + 0.5)
    face = np.int32(0) if face == 6 else face
    red = top if face == 0 or face == 5 else (falling if face == 1 else (rising if face == 4 else low))
    green = top if face == 1 or face == 2 else (rising if face == 0 else (falling if face == 3 else low))
    blue = top if face == 3 or face == 4 else (rising if face == 2 else (falling if face == 5 else low))
    return red, green, blue


@_compiled
def to_grayscale(planes: Pixels) -> None:
    """Replace every colour by its ITU-R 601 luma."""
    red, green, blue = _channels(planes)
    for position in range(len(red)):
        grey = _luma(red[position], green[position], blue[position])
        red[position] = green[position] = blue[position] = grey


@_compiled
def solarize(planes: Pixels, threshold: int) -> None:
    """Invert levels of at least `threshold` (0 to 256)."""
    flat = planes.reshape(planes.size)
    for position in range(len(flat)):
        level = np.int32(flat[position])
        flat[position] = np.int32(255) - level if level >= threshold else level


@_compiled
def _channels(planes: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    size = planes.shape[1] * planes.shape[2]
    return planes[0].reshape(size), planes[1].reshape(size), planes[2].reshape(size)


@_compiled
def jitter_order(key: Integer) -> npt.NDArray[np.int64]:
    """Draw a uniformly random order of BRIGHTNESS, CONTRAST, SATURATION and HUE."""
    order = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    for last in range(3, 0, -1):
        other = int(uniform(key, JITTER_ORDER, last) * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


@_compiled
def jitter_factor(key: Integer, operation: Integer, strength: float) -> float:
    """Draw the factor of a jitter operation as torchvision does.

    Hue is uniform in [-strength, strength), the others in [max(0, 1 - strength), 1 + strength).
    """
    if operation == HUE:
        return uniform_between(key, operation, 0, -strength, strength)
    return uniform_between(key, operation, 0, max(0.0, 1.0 - strength), 1.0 + strength)


@_compiled
def _jitter(planes: Pixels, key: Integer, parameters: ViewParameters) -> None:
    for operation in jitter_order(key):
        if operation == BRIGHTNESS and parameters.brightness > 0:
            adjust_brightness(planes, jitter_factor(key, operation, parameters.brightness))
        elif operation == CONTRAST and parameters.contrast > 0:
            adjust_contrast(planes, jitter_factor(key, operation, parameters.contrast))
        elif operation == SATURATION and parameters.saturation > 0:
            adjust_saturation(planes, jitter_factor(key, operation, parameters.saturation))
        elif operation == HUE and parameters.hue > 0:
            adjust_hue(planes, jitter_factor(key, operation, parameters.hue))


@_compiled
def blur_kernel_size(image_size: int) -> int:
    """Return a tenth of the side, made odd and at least 3 pixels (SimCLR, Chen et al., ICML 2020, appendix A)."""
    return max(3, 2 * (image_size // 20) + 1)


@_compiled
def gaussian_blur(planes: Pixels, kernel_size: int, sigma: float) -> None:
    """Convolve with a Gaussian cut off at `kernel_size` pixels, with reflected borders.

    Args:
        planes: (3, H, W), each side longer than half the kernel, or one pixel, which is its own reflection.
        kernel_size: odd number of taps.
        sigma: standard deviation in pixels.
    """
    height, width = planes.shape[1], planes.shape[2]
    radius = kernel_size // 2
    weights = np.empty(kernel_size, np.float32)
    for tap in range(kernel_size):
        weights[tap] = math.exp(-0.5 * ((tap - radius) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.empty(width + 2 * radius, np.float32)
    rows = np.empty((height + 2 * radius, width), np.float32)
    blurred = np.empty(width, np.float32)
    for channel in range(3):
        for row in range(height):
            line = planes[channel, row]
            for column in range(width):
                padded[radius + column] = line[column]
            for offset in range(1, radius + 1):
                inwards = min(offset, width - 1)
                padded[radius - offset] = padded[radius + inwards]
                padded[radius + width - 1 + offset] = padded[radius + width - 1 - inwards]
            sums = rows[radius + row]
            sums[:] = _ZERO
            for tap in range(kernel_size):
                weight, shifted = weights[tap], padded[tap : tap + width]
                for column in range(width):
                    sums[column] += weight * shifted[column]
        for offset in range(1, radius + 1):
            inwards = min(offset, height - 1)
            rows[radius - offset] = rows[radius + inwards]
            rows[radius + height - 1 + offset] = rows[radius + height - 1 - inwards]
        for row in range(height):
            blurred[:] = _ZERO
            for tap in range(kernel_size):
                weight, sums = weights[tap], rows[row + tap]
                for column in range(width):
                    blurred[column] += weight * sums[column]
            line = planes[channel, row]
            for column in range(width):
                line[column] = np.int32(min(_WHITE, blurred[column] + _HALF))


@_compiled
def make_view(image: Pixels, key: Integer, parameters: ViewParameters, planes: Pixels) -> None:
    """Write one random view.

    Args:
        image: (H, W, 3) input.
        key: from `view_key`.
        parameters: the augmentation.
        planes: (3, S, S) output.
    """
    size = planes.shape[1]
    if parameters.crop:
        top, left, height, width = crop_box(
            key,
            image.shape[0],
            image.shape[1],
            parameters.scale_low,
            parameters.scale_high,
            parameters.ratio_low,
            parameters.ratio_high,
        )
        box = image[top : top + height, left : left + width]
        resize_window(box, size, size, 0, 0, parameters.resampling, planes)
    else:
        evaluation_view(image, parameters.evaluation_resize, planes)
    if parameters.shift > 0:
        shift_reflected(planes, shift_offset(key, 0, parameters.shift), shift_offset(key, 1, parameters.shift))
    if uniform(key, JITTER, 0) < parameters.jitter_probability:
        _jitter(planes, key, parameters)
    if uniform(key, GRAYSCALE, 0) < parameters.grayscale_probability:
        to_grayscale(planes)
    if uniform(key, BLUR, 0) < parameters.blur_probability:
        sigma = uniform_between(key, BLUR_SIGMA, 0, parameters.sigma_low, parameters.sigma_high)
        gaussian_blur(planes, blur_kernel_size(size), sigma)
    if uniform(key, SOLARISATION, 0) < parameters.solarisation_probability:
        solarize(planes, parameters.solarisation_threshold)


@_compiled
def interleave(planes: Pixels, mirrored: bool, levels: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write (3, S, S) planes to (S, S, 3), mirrored left to right if asked, mapping each level through `levels`."""
    size = planes.shape[1]
    for row in range(size):
        line = out[row]
        for column in range(size):
            source = size - 1 - column if mirrored else column
            for channel in range(3):
                line[column, channel] = levels[planes[channel, row, source]]


@_compiled
def make_views(
    pixels: Pixels,
    offsets: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    epoch_key: np.uint64,
    parameters: ViewParameters,
    levels: npt.NDArray[Any],
    out: npt.NDArray[Any],
    first: int,
) -> None:
    """Write the views of several images.

    Args:
        pixels: read-only bytes that hold the decoded images.
        offsets: (n,) position of each image in `pixels`.
        heights: (n,) pixels.
        widths: (n,) pixels.
        indices: (n,) index of each image in its data set.
        epoch_key: key of the random stream of this epoch of the run.
        parameters: the augmentation.
        levels: (256,) value to write for each grey level.
        out: (views, B, S, S, 3) output, of the type of `levels`.
        first: position of the first image in the batch `out`; the others follow.
    """
    size = out.shape[2]
    planes = np.empty((3, size, size), np.uint8)
    for number in range(len(indices)):
        height, width, offset = heights[number], widths[number], offsets[number]
        image = pixels[offset : offset + 3 * height * width].reshape(height, width, 3)
        for view in range(len(out)):
            key = view_key(epoch_key, np.uint64(indices[number]), np.uint64(view))
            make_view(image, key, parameters, planes)
            mirrored = uniform(key, FLIP, 0) < parameters.flip_probability
            interleave(planes, mirrored, levels, out[view, first + number])


LEVELS: dict[str, npt.NDArray[Any]] = {
    "float32": np.arange(256, dtype=np.float32) / np.float32(255),
    "uint8": np.arange(256, dtype=np.uint8),
}
"""The values that `make_views` may write for the grey levels: numbers in [0, 1], or the levels themselves."""
