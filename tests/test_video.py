"""Videos: sharp frames are kept along the path, the cameras of a film with motion blur are found, bad films are refused."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from bags_jax.errors import UserError
from bags_jax.sfm import video
from bags_jax.sfm.capture_folder import make_capture
from bags_jax.sfm.frame_choice import choose_frames, count_frames
from tools.pose_error import measure_poses
from tools.world_video import Film, write_film

cv2 = video.load_cv2()  # before anything else uses FFmpeg, so that it is silent
TEXTURE = np.kron(np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8), np.ones((6, 6, 1), np.uint8))
SMOOTH = cv2.GaussianBlur(TEXTURE, (5, 5), 0)


def write(path, frames, *, fps=30.0):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame))
    writer.release()
    return path


def pan(num, *, step=2):
    """The picture moves sideways."""
    return [SMOOTH[20:164, i * step : i * step + 192] for i in range(num)]


def turn(num):
    """A camera on a tripod that turns by 40 degrees in front of a wall."""
    K = np.array([[170.0, 0, 96], [0, 170, 72], [0, 0, 1]])
    wall = np.array([[170.0, 0, 270], [0, 170, 120], [0, 0, 1]])
    frames = []
    for angle in np.radians(np.linspace(-20, 20, num)):
        rotation = cv2.Rodrigues(np.array([0.05 * np.sin(9 * angle), angle, 0.0]))[0]
        frames.append(cv2.warpPerspective(SMOOTH, K @ rotation @ np.linalg.inv(wall), (192, 144)))
    return frames


# --- which frames ----------------------------------------------------------------------------------------------------


def test_number_of_frames():
    assert count_frames(np.linspace(0, 5.0, 2000)) == 100  # each stands for 5 % of the longer side
    assert count_frames(np.linspace(0, 0.5, 2000)) == 60 and count_frames(np.linspace(0, 50.0, 2000)) == 150
    assert count_frames(np.linspace(0, 50.0, 90)) == 45


def test_sharp_frames_are_kept_and_leave_no_gap():
    key = np.random.default_rng(0)
    sharpness, path = key.uniform(1, 10, 600), np.cumsum(key.uniform(0, 0.02, 600))
    chosen = choose_frames(sharpness, path, 60)
    assert 50 <= len(chosen) <= 60 and (np.diff(chosen) > 0).all()
    assert np.mean(sharpness[chosen]) > 8.5  # of ten frames at random the sharpest has 9.2
    assert np.diff(chosen).max() < 40 and chosen[0] < 20 and chosen[-1] >= 580


def test_a_camera_that_rests_gives_few_frames():
    path = np.concatenate([np.linspace(0, 1, 100), np.ones(400)])
    chosen = choose_frames(np.ones(500), path, 60)
    assert 0.3 < np.mean(chosen < 100) < 0.8  # a fifth of the time, half of the distance


# --- a film with motion blur -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "flight.mp4"
    write_film(path, Film(layout="still_life", seconds=3.4, width=256, height=144, samples=2))
    return path


def test_cameras_of_a_film_are_found(film, tmp_path):
    """Measured on 8 s of 640 x 360 px: all frames, 0.30 px."""
    lines = []
    found = make_capture(film, tmp_path / "capture", num_frames=18, report=lines.append)
    assert any(line.startswith(f"{len(found.posed_names) + len(found.lost_names)} of 102 frames") for line in lines)
    assert len(found.posed_names) >= 16 and all(name.startswith("frame_") for name in found.posed_names)
    errors = measure_poses(tmp_path / "capture", film.with_suffix(".npz"))
    assert np.median(errors) < 1.0
    assert {path.name for path in (tmp_path / "capture").iterdir()} == {"images", "sparse", "sfm.json"}


def test_sharpness_follows_blur_and_the_path_grows(film):
    footage = video.watch(film)
    blur = np.load(film.with_suffix(".npz"))["blur_px"]
    assert footage.num_frames == footage.num_promised == 102 and (footage.width, footage.height) == (256, 144)
    assert np.corrcoef(blur, footage.sharpness)[0, 1] < -0.6
    assert (np.diff(footage.path) >= 0).all() and 0.2 < footage.path[-1] < 5


def test_path_is_measured_in_shares_of_the_longer_side(tmp_path):
    footage = video.watch(write(tmp_path / "pan.mp4", pan(100)))
    np.testing.assert_allclose(footage.path[-1], 2 * 99 / 192, rtol=0.1)


def test_a_long_video_is_watched_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_WATCHED", 40)
    footage = video.watch(write(tmp_path / "pan.mp4", pan(100)))
    assert footage.numbers.tolist() == list(range(0, 100, 3)) and footage.num_frames == 100
    files = video.write_frames(footage, footage.numbers[[1, 4]], tmp_path / "out")
    assert [file.name for file in files] == ["frame_000003.jpg", "frame_000012.jpg"]
    expected = pan(13)[12][..., ::-1].astype(int)
    errors = [np.abs(np.asarray(Image.open(files[1])) - np.roll(expected, step, axis=1)).mean() for step in (0, 2, -2)]
    assert errors[0] < 12 and errors[0] < 0.6 * min(errors[1:])  # the codecs lose a little; a frame moves by 2 px


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg writes the rotation")
def test_rotation_is_honoured(tmp_path):
    write(tmp_path / "lying.mp4", pan(95))
    line = ["ffmpeg", "-v", "error", "-i", "lying.mp4", "-c", "copy", "-metadata:s:v:0", "rotate=90", "tall.mp4"]
    subprocess.run(line, cwd=tmp_path, check=True)
    footage = video.watch(tmp_path / "tall.mp4")
    (file,) = video.write_frames(footage, footage.numbers[:1], tmp_path / "out")
    assert (footage.width, footage.height) == (144, 192) == Image.open(file).size
    turned = [np.rot90(pan(1)[0], k)[..., ::-1].astype(int) for k in (1, -1)]
    assert min(np.abs(np.asarray(Image.open(file)) - picture).mean() for picture in turned) < 12


# --- films that cannot be used ---------------------------------------------------------------------------------------


def refused(path, tmp_path, said, **options):
    with pytest.raises(UserError, match=said) as caught:
        make_capture(path, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    return tmp_path / "out"


def test_two_seconds(tmp_path):
    said = r"is 2\.0 s long: expected 3 s or more, better 10 to 60 s; film slowly"
    assert not refused(write(tmp_path / "short.mp4", pan(60)), tmp_path, said).exists()


def test_a_camera_that_stands_still(tmp_path):
    assert not refused(write(tmp_path / "still.mp4", pan(1) * 100), tmp_path, "stands still .* no parallax").exists()


def test_a_camera_that_only_turns(tmp_path):
    path = write(tmp_path / "turn.mp4", turn(100))
    out = refused(path, tmp_path, "no parallax .*walk around the subject", num_frames=10)
    assert {file.name for file in out.iterdir()} == {"images", "sfm.json"}


@pytest.mark.parametrize("data", [b"", b"no video at all" * 99, None])
def test_a_file_that_cannot_be_decoded(tmp_path, capfd, data):
    path = tmp_path / "broken.mp4"
    if data is None:  # cut off: its index is at the end
        data = write(tmp_path / "whole.mp4", pan(100)).read_bytes()[:20_000]
    path.write_bytes(data)
    assert not refused(path, tmp_path, "cannot be decoded as a video").exists()
    assert capfd.readouterr().err == ""  # no lines of FFmpeg
