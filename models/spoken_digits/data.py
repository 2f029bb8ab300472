"""The Free Spoken Digit Dataset as pictures: log-mel spectrograms, uint8 [clips, bands, frames, 1].

Only numpy and the standard library: what is here is what a device has to compute before the network.
"""

import wave
from pathlib import Path
from typing import Any

import numpy as np

RATE = 8000  # samples per second, as the clips have it
SECONDS = 0.8  # 97 % of the clips are shorter; longer ones keep their middle
WINDOW = 256  # samples: 32 ms
HOP = 128  # samples: 16 ms
BANDS = 40
FLOOR_DB = 80.0  # below the clip's loudest point: black
TEST_TAKES = 5  # the data set's usual test split: takes 0 to 4 of each digit and speaker


def load(folder: str = "recordings") -> dict[str, Any]:
    """Return the splits.

    Args:
        folder: With ``{digit}_{speaker}_{take}.wav``; relative to this file.
    """
    clips = sorted((Path(__file__).parent / folder).glob("*.wav"))
    if not clips:
        raise FileNotFoundError(f"no recordings in {Path(__file__).parent / folder}: README.md says where to get them")
    pictures = np.stack([log_mel(read(clip)) for clip in clips])[..., None]
    digits = np.array([int(clip.name.split("_")[0]) for clip in clips])
    test = np.array([int(clip.stem.split("_")[2]) < TEST_TAKES for clip in clips])
    return {
        "train": (pictures[~test], digits[~test]),
        "test": (pictures[test], digits[test]),
        "class_names": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    }


def read(path: Path) -> np.ndarray:
    """Return a 16-bit mono clip as float64 [samples], -1 to 1."""
    with wave.open(str(path)) as clip:
        form = (clip.getframerate(), clip.getnchannels(), clip.getsampwidth())
        if form != (RATE, 1, 2):
            raise ValueError(f"{path.name} is {form[0]} Hz, {form[1]} channels, {8 * form[2]} bits; not 8000, 1, 16")
        return np.frombuffer(clip.readframes(clip.getnframes()), dtype="<i2") / 32768.0


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Return the log-mel spectrogram of a clip, uint8 [BANDS, frames]: 255 is its loudest point, 0 is FLOOR_DB
    below."""
    length = round(SECONDS * RATE)
    spare = len(sound) - length
    sound = sound[spare // 2 : spare // 2 + length] if spare > 0 else np.pad(sound, (-spare // 2, -spare - -spare // 2))
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    decibels = 10 * np.log10(FILTERS @ power.T + 1e-10)
    return np.round(255 * np.clip(1 + (decibels - decibels.max()) / FLOOR_DB, 0, 1)).astype(np.uint8)


def mel_filters() -> np.ndarray:
    """Return triangular filters, float64 [BANDS, WINDOW // 2 + 1], evenly spaced in mel = 2595 log10(1 + Hz / 700)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    hertz = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


FILTERS = mel_filters()
