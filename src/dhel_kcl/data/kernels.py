"""Compiled image operations and the random draws behind them.

Every draw is a hash of (epoch key, image, view, operation, counter), so a view does not depend on threads, batches or
the order of images, and switching one operation off leaves the draws of the others alone.

All kernels are in this one module because numba's cache notices a change only in the file of the function it compiled.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Pixels = npt.NDArray[np.uint8]
Integer = int | np.integer[Any]

CROP, FLIP, JITTER, JITTER_ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, BLUR, BLUR_SIGMA = range(11)
"""Operations that draw random numbers; the value is part of the key of the draw."""

BILINEAR, BICUBIC = range(2)
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}

# PIL resamples 8-bit images with weights in this fixed-point precision.
WEIGHT_BITS = 32 - 8 - 2

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


class ViewParameters(NamedTuple):
    """What a view is made with; an operation with probability 0 is off.

    Without `crop`, the view has the evaluation geometry: the whole image if it has the size of the view, else the
    centre of the image whose shorter side was resized to `evaluation_resize` pixels.
    """

    crop: bool
    scale_low: float
    scale_high: float
    ratio_low: float
    ratio_high: float
    resampling: int
    evaluation_resize: int
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


_compiled = njit(cache=True, fastmath=False, nogil=True, error_model="numpy")


@_compiled
def splitmix64(state: Integer, counter: Integer) -> Integer:
    """Output number `counter` of the splitmix64 generator (Steele et al., OOPSLA 2014) seeded with `state`."""
    z = np.uint64(state) + (np.uint64(counter) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _SHIFT_30)) * _MIX_1
    z = (z ^ (z >> _SHIFT_27)) * _MIX_2
    return z ^ (z >> _SHIFT_31)


@_compiled
def view_key(epoch_key: Integer, index: Integer, view: Integer) -> Integer:
    """Key of one view of one image in one epoch."""
    return splitmix64(splitmix64(epoch_key, index), view)


@_compiled
def uniform(key: Integer, operation: Integer, draw: Integer) -> float:
    """Draw number `draw` of an operation of the view with this key: uniform in [0, 1)."""
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

    Ten tries at an area share from [scale_low, scale_high] and a log-uniform aspect ratio (width / height); if none
    fits, the largest central box whose ratio is allowed.

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
        box_height = int(np.rint(width / ratio_low))
    elif width / height > ratio_high:
        box_width = int(np.rint(height * ratio_high))
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
    """Weights of the inputs of outputs first .. first + count - 1, when `length` pixels become `full` pixels.

    Returns:
        (count, 2) first input and number of inputs, and (count, widest) fixed-point weights.
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
    """Write the part of the resized image that `out` covers, antialiased and rounded as PIL does.

    Args:
        image: (H, W, 3) input.
        full_height: height of the whole resized image.
        full_width: width of the whole resized image.
        top: row of the resized image that is the first row of `out`.
        left: column of the resized image that is the first column of `out`.
        resampling: BILINEAR or BICUBIC.
        out: (h, w, 3) output.
    """
    rows, columns = out.shape[0], out.shape[1]
    row_spans, row_weights = _resampling_weights(image.shape[0], full_height, top, rows, resampling)
    column_spans, column_weights = _resampling_weights(image.shape[1], full_width, left, columns, resampling)
    first_row = row_spans[0, 0]
    needed_rows = row_spans[rows - 1, 0] + row_spans[rows - 1, 1] - first_row
    half = 1 << (WEIGHT_BITS - 1)
    narrow = np.empty((needed_rows, 3 * columns), np.uint8)
    for row in range(needed_rows):
        for column in range(columns):
            start = column_spans[column, 0]
            red = green = blue = half
            for tap in range(column_spans[column, 1]):
                weight = column_weights[column, tap]
                red += weight * image[first_row + row, start + tap, 0]
                green += weight * image[first_row + row, start + tap, 1]
                blue += weight * image[first_row + row, start + tap, 2]
            narrow[row, 3 * column] = _to_byte(red)
            narrow[row, 3 * column + 1] = _to_byte(green)
            narrow[row, 3 * column + 2] = _to_byte(blue)
    accumulated = np.empty(3 * columns, np.int32)
    for row in range(rows):
        accumulated[:] = half
        for tap in range(row_spans[row, 1]):
            weight = row_weights[row, tap]
            source = narrow[row_spans[row, 0] - first_row + tap]
            for position in range(3 * columns):
                accumulated[position] += np.int32(weight * np.int32(source[position]))
        for column in range(columns):
            for channel in range(3):
                out[row, column, channel] = _to_byte(accumulated[3 * column + channel])


@_compiled
def evaluation_view(image: Pixels, shorter_side: int, out: Pixels) -> None:
    """Write the whole image if it has the size of `out`, else its centre once its shorter side is `shorter_side`."""
    height, width = image.shape[0], image.shape[1]
    if height == out.shape[0] and width == out.shape[1]:
        out[:] = image
        return
    if height <= width:
        full_height, full_width = shorter_side, int(shorter_side * width / height)
    else:
        full_height, full_width = int(shorter_side * height / width), shorter_side
    top = int(np.rint((full_height - out.shape[0]) / 2))
    left = int(np.rint((full_width - out.shape[1]) / 2))
    resize_window(image, full_height, full_width, top, left, BICUBIC, out)


@_compiled
def flip(image: Pixels) -> None:
    """Mirror (H, W, 3) left to right, in place."""
    width = image.shape[1]
    for row in range(image.shape[0]):
        for column in range(width // 2):
            for channel in range(3):
                left = image[row, column, channel]
                image[row, column, channel] = image[row, width - 1 - column, channel]
                image[row, width - 1 - column, channel] = left


@_compiled
def _luma(red: int, green: int, blue: int) -> int:
    # ITU-R 601-2 in 16-bit fixed point, as PIL converts to mode L.
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


@_compiled
def _blend(degenerate: Integer, value: Integer, factor: float) -> Integer:
    # PIL truncates.
    return int(min(255.0, max(0.0, degenerate + factor * (value - degenerate))))


@_compiled
def adjust_brightness(image: Pixels, factor: float) -> None:
    """Blend with black, in place."""
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            for channel in range(3):
                image[row, column, channel] = _blend(0, np.int64(image[row, column, channel]), factor)


@_compiled
def adjust_contrast(image: Pixels, factor: float) -> None:
    """Blend with the rounded mean of the grey image, in place."""
    total = 0
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            total += _luma(image[row, column, 0], image[row, column, 1], image[row, column, 2])
    mean = int(total / (image.shape[0] * image.shape[1]) + 0.5)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            for channel in range(3):
                image[row, column, channel] = _blend(mean, np.int64(image[row, column, channel]), factor)


@_compiled
def adjust_saturation(image: Pixels, factor: float) -> None:
    """Blend with the grey image, in place; factor 0 makes the image grey."""
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            grey = _luma(image[row, column, 0], image[row, column, 1], image[row, column, 2])
            for channel in range(3):
                image[row, column, channel] = _blend(grey, np.int64(image[row, column, channel]), factor)


@_compiled
def adjust_hue(image: Pixels, shift: float) -> None:
    """Turn the hue by `shift` full circles (-0.5 to 0.5), in place, through PIL's 8-bit HSV."""
    steps = int(shift * 255)
    if steps == 0:
        return
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            red: Integer = np.int64(image[row, column, 0])
            green: Integer = np.int64(image[row, column, 1])
            blue: Integer = np.int64(image[row, column, 2])
            highest, lowest = max(red, green, blue), min(red, green, blue)
            if highest == lowest:
                continue
            chroma = np.float32(highest - lowest)
            from_red = np.float32(highest - red) / chroma
            from_green = np.float32(highest - green) / chroma
            from_blue = np.float32(highest - blue) / chroma
            if red == highest:
                sector = np.float32(from_blue - from_green)
            elif green == highest:
                sector = np.float32(2.0 + from_red - from_blue)
            else:
                sector = np.float32(4.0 + from_green - from_red)
            turn = np.float32((sector / 6.0 + 1.0) % 1.0)
            hue = (min(255, int(turn * 255.0)) + steps) & 255
            saturation = int(chroma / np.float32(highest) * 255.0)
            if saturation == 0:
                for channel in range(3):
                    image[row, column, channel] = highest
                continue
            position = np.float32(hue * 6.0 / 255.0)
            face = int(position)
            part = np.float32(position - face)
            share = np.float32(saturation / 255.0)
            low = int(highest * (1.0 - share) + 0.5)
            falling = int(highest * (1.0 - np.float32(share * part)) + 0.5)
            rising = int(highest * (1.0 - share * (1.0 - part)) + 0.5)
            face %= 6
            if face == 0:
                red, green, blue = highest, rising, low
            elif face == 1:
                red, green, blue = falling, highest, low
            elif face == 2:
                red, green, blue = low, highest, rising
            elif face == 3:
                red, green, blue = low, falling, highest
            elif face == 4:
                red, green, blue = rising, low, highest
            else:
                red, green, blue = highest, low, falling
            image[row, column, 0] = red
            image[row, column, 1] = green
            image[row, column, 2] = blue


@_compiled
def jitter_order(key: Integer) -> npt.NDArray[np.int64]:
    """Uniformly random order of BRIGHTNESS, CONTRAST, SATURATION and HUE."""
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
def _jitter(image: Pixels, key: Integer, parameters: ViewParameters) -> None:
    for operation in jitter_order(key):
        if operation == BRIGHTNESS and parameters.brightness > 0:
            adjust_brightness(image, jitter_factor(key, operation, parameters.brightness))
        elif operation == CONTRAST and parameters.contrast > 0:
            adjust_contrast(image, jitter_factor(key, operation, parameters.contrast))
        elif operation == SATURATION and parameters.saturation > 0:
            adjust_saturation(image, jitter_factor(key, operation, parameters.saturation))
        elif operation == HUE and parameters.hue > 0:
            adjust_hue(image, jitter_factor(key, operation, parameters.hue))


@_compiled
def to_grayscale(image: Pixels) -> None:
    """Replace every colour by its ITU-R 601 luma, in place."""
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            grey = _luma(image[row, column, 0], image[row, column, 1], image[row, column, 2])
            for channel in range(3):
                image[row, column, channel] = grey


@_compiled
def blur_kernel_size(image_size: int) -> int:
    """A tenth of the image's side made odd, and at least 3 pixels (SimCLR, Chen et al., ICML 2020, appendix A)."""
    return max(3, 2 * (image_size // 20) + 1)


@_compiled
def gaussian_blur(image: Pixels, kernel_size: int, sigma: float) -> None:
    """Convolve with a Gaussian cut off at `kernel_size` pixels, with reflected borders, in place.

    Args:
        image: (H, W, 3), each side longer than half the kernel.
        kernel_size: odd number of taps.
        sigma: standard deviation in pixels.
    """
    height, width = image.shape[0], image.shape[1]
    radius = kernel_size // 2
    weights = np.empty(kernel_size, np.float32)
    for tap in range(kernel_size):
        weights[tap] = math.exp(-0.5 * ((tap - radius) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.empty(3 * (width + 2 * radius), np.float32)
    rows = np.zeros((height + 2 * radius, 3 * width), np.float32)
    for row in range(height):
        for column in range(-radius, width + radius):
            source = abs(column) if column < width else 2 * (width - 1) - column
            for channel in range(3):
                padded[3 * (column + radius) + channel] = image[row, source, channel]
        for tap in range(kernel_size):
            for position in range(3 * width):
                rows[row + radius, position] += weights[tap] * padded[3 * tap + position]
    for offset in range(1, radius + 1):
        rows[radius - offset] = rows[radius + offset]
        rows[radius + height - 1 + offset] = rows[radius + height - 1 - offset]
    blurred = np.empty(3 * width, np.float32)
    for row in range(height):
        blurred[:] = 0
        for tap in range(kernel_size):
            for position in range(3 * width):
                blurred[position] += weights[tap] * rows[row + tap, position]
        for column in range(width):
            for channel in range(3):
                image[row, column, channel] = int(np.rint(min(np.float32(255), blurred[3 * column + channel])))


@_compiled
def make_view(image: Pixels, key: Integer, parameters: ViewParameters, out: Pixels) -> None:
    """Write one random view.

    Args:
        image: (H, W, 3) input.
        key: from `view_key`.
        parameters: the augmentation.
        out: (S, S, 3) output.
    """
    size = out.shape[0]
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
        resize_window(box, size, size, 0, 0, parameters.resampling, out)
    else:
        evaluation_view(image, parameters.evaluation_resize, out)
    if uniform(key, FLIP, 0) < parameters.flip_probability:
        flip(out)
    if uniform(key, JITTER, 0) < parameters.jitter_probability:
        _jitter(out, key, parameters)
    if uniform(key, GRAYSCALE, 0) < parameters.grayscale_probability:
        to_grayscale(out)
    if uniform(key, BLUR, 0) < parameters.blur_probability:
        sigma = uniform_between(key, BLUR_SIGMA, 0, parameters.sigma_low, parameters.sigma_high)
        gaussian_blur(out, blur_kernel_size(size), sigma)


@_compiled
def make_views(
    pixels: Pixels,
    offsets: npt.NDArray[np.int64],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    epoch_key: np.uint64,
    parameters: ViewParameters,
    out: Pixels,
) -> None:
    """Write the views of several images.

    Args:
        pixels: read-only bytes that hold the decoded images, such as a mapped file.
        offsets: (n,) position of each image in `pixels`.
        heights: (n,) pixels.
        widths: (n,) pixels.
        indices: (n,) number of each image in its data set.
        epoch_key: key of the random stream of this run's epoch.
        parameters: the augmentation.
        out: (n, views, S, S, 3) output.
    """
    for image_number in range(len(indices)):
        height, width, offset = heights[image_number], widths[image_number], offsets[image_number]
        image = pixels[offset : offset + 3 * height * width].reshape(height, width, 3)
        for view in range(out.shape[1]):
            key = view_key(epoch_key, np.uint64(indices[image_number]), np.uint64(view))
            make_view(image, key, parameters, out[image_number, view])
