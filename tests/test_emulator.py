"""The PTX emulator (tools/ptx_emulator): results of instructions, and faults that a GPU would not report."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from screen import Scene, flat, with_gradients

from bags_jax.ops.rasterize.cuda.binding import rasterize as rasterize_cuda
from bags_jax.ops.toolchain import cuda_launch
from tools.ptx_emulator import find_problem, make_route, shipped

pytestmark = pytest.mark.skipif(bool(find_problem()), reason=find_problem() or "g++ is there")

THREADS = 64
# A thread reads its number into %r2. Its word of shared memory is at %r5. Its result goes from %r6 to [%rd5].
KERNEL = """.version 8.3
.target sm_80
.address_size 64
.visible .entry given(
	.param .u64 given_param_0,
	.param .u64 given_param_1
)
{
	.reg .pred %p<8>;
	.reg .f32 %f<8>;
	.reg .b32 %r<16>;
	.reg .b64 %rd<8>;
	.shared .align 4 .b8 box[256];
	ld.param.u64 %rd1, [given_param_0];
	ld.param.u64 %rd2, [given_param_1];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 4;
	add.s64 %rd4, %rd1, %rd3;
	add.s64 %rd5, %rd2, %rd3;
	ld.global.u32 %r2, [%rd4];
	mov.b32 %f2, %r2;
	shl.b32 %r3, %r1, 2;
	mov.u32 %r4, box;
	add.s32 %r5, %r4, %r3;
	BODY
	st.global.u32 [%rd5], %r6;
$L__END:
	ret;
}
"""


def text_of(body: str) -> str:
    return KERNEL.replace("BODY", body.replace("; ", ";\n"))


def run(monkeypatch, body: str, numbers: np.ndarray) -> np.ndarray:
    """Runs a body in one block and returns %r6 of all threads."""
    route = make_route(tuple(text_of(case[0]) for case in (*INTEGERS, *FLOATS, *FAULTS)))
    monkeypatch.setattr(cuda_launch, "ptx", lambda program, name: text_of(body))
    shape, block = jax.ShapeDtypeStruct((THREADS,), jnp.uint32), cuda_launch.Kernel("", "given", THREADS)
    return np.asarray(cuda_launch.launch(block, [shape], jnp.asarray(numbers), grid=(1, 1), route=route)[0])


WORDS = np.random.default_rng(0).integers(0, 2**32, THREADS, dtype=np.uint32)
SIGNED = WORDS.view(np.int32).astype(np.int64)
LANE = np.arange(THREADS) % 32
WARP = np.arange(THREADS) - LANE
INTEGERS = [
    ("shl.b32 %r6, %r2, 31;", WORDS << 31),
    ("shl.b32 %r6, %r2, 32;", 0 * WORDS),
    ("shr.u32 %r6, %r2, 32;", 0 * WORDS),
    ("shr.s32 %r6, %r2, 40;", SIGNED >> 31),
    ("shr.u32 %r6, %r2, %r1;", np.array([int(x) >> i for i, x in enumerate(WORDS)])),
    ("mul.hi.s32 %r6, %r2, -1840700269;", SIGNED * -1840700269 >> 32),
    ("mad.lo.s32 %r6, %r2, %r2, -5;", SIGNED * SIGNED - 5),
    ("div.s32 %r6, %r2, 7;", np.trunc(SIGNED / 7)),
    ("brev.b32 %r6, %r2;", np.array([int(f"{x:032b}"[::-1], 2) for x in WORDS])),
    ("shr.u32 %r7, %r2, 20; bfind.shiftamt.u32 %r6, %r7;", np.array([32 - int(x >> 20).bit_length() for x in WORDS])),
    ("bfind.shiftamt.u32 %r6, 0;", ~(0 * WORDS)),
    ("bfi.b32 %r6, %r1, %r2, 3, 5;", (WORDS & ~np.uint32(0xF8)) | np.arange(THREADS) % 32 * 8),
    ("setp.lt.s32 %p1, %r2, 0; selp.b32 %r6, 1, 2, %p1;", np.where(SIGNED < 0, 1, 2)),
    ("cvt.s64.s32 %rd6, %r2; shr.s64 %rd6, %rd6, 4; cvt.u32.u64 %r6, %rd6;", SIGNED >> 4),
    ("shfl.sync.bfly.b32 %r6|%p1, %r2, 5, 31, -1;", WORDS[WARP + (LANE ^ 5)]),
    ("shfl.sync.idx.b32 %r6|%p1, %r2, 33, 31, -1;", WORDS[WARP + 1]),
    ("shfl.sync.up.b32 %r6|%p1, %r2, 3, 0, -1;", WORDS[WARP + np.where(LANE < 3, LANE, LANE - 3)]),
    ("shfl.sync.up.b32 %r7|%p1, %r2, 3, 0, -1; selp.b32 %r6, 1, 0, %p1;", LANE >= 3),
    # Segments of 8 lanes: 24 in bits 8 to 12 of the third operand.
    ("shfl.sync.up.b32 %r6|%p1, %r2, 3, 6144, -1;", WORDS[WARP + np.where(LANE % 8 < 3, LANE, LANE - 3)]),
    ("shfl.sync.idx.b32 %r6|%p1, %r2, 9, 6175, -1;", WORDS[WARP + LANE // 8 * 8 + 1]),
    ("setp.eq.s32 %p1, %r1, 34; vote.sync.ballot.b32 %r6, %p1, -1;", np.where(WARP == 32, 4, 0)),
    ("setp.eq.s32 %p1, %r1, 34; vote.sync.any.pred %p2, %p1, -1; selp.b32 %r6, 1, 0, %p2;", WARP == 32),
    ("setp.eq.s32 %p1, %r1, 34; bar.red.or.pred %p2, 0, %p1; selp.b32 %r6, 1, 0, %p2;", 0 * WORDS + 1),
    ("st.shared.u32 [%r5], %r2; bar.sync 0; ld.shared.u32 %r6, [%r4+4];", 0 * WORDS + WORDS[1]),
]  # fmt: skip


@pytest.mark.parametrize("body, expected", INTEGERS)
def test_integers_and_lanes(monkeypatch, body, expected):
    given = run(monkeypatch, body, WORDS)
    np.testing.assert_array_equal(given, np.asarray(expected).astype(np.int64).astype(np.uint32))


NUMBERS = [0, 0.5, -0.5, 2.5, -2.5, 2**31, -3e9, np.nan, np.inf, -np.inf, 1e-3, 0.75, 7, -7, 1e30, 1] * 4
SINGLES = np.array(NUMBERS, np.float32)
BELOW_1 = 1 - 2.0**-24
FLOATS = [
    ("cvt.rn.f32.s32 %f1, -3; mov.b32 %r6, %f1;", np.full(THREADS, -3)),
    ("cvt.rzi.s32.f32 %r7, %f2; cvt.rn.f32.s32 %f1, %r7; mov.b32 %r6, %f1;", np.trunc(np.nan_to_num(SINGLES).clip(-(2**31), 2**31))),
    ("cvt.rmi.f32.f32 %f1, %f2; mov.b32 %r6, %f1;", np.floor(SINGLES)),
    ("cvt.rpi.f32.f32 %f1, %f2; mov.b32 %r6, %f1;", np.ceil(SINGLES)),
    ("cvt.sat.f32.f32 %f1, %f2; mov.b32 %r6, %f1;", np.nan_to_num(SINGLES).clip(0, 1)),
    ("min.f32 %f1, %f2, 0f3F800000; mov.b32 %r6, %f1;", np.fmin(SINGLES, np.float32(1))),
    ("max.f32 %f1, 0f3F800000, %f2; mov.b32 %r6, %f1;", np.fmax(SINGLES, np.float32(1))),
    ("setp.lt.f32 %p1, %f2, 0f3F800000; selp.f32 %f1, 0f3F800000, 0f00000000, %p1; mov.b32 %r6, %f1;", SINGLES < 1),
    ("setp.geu.f32 %p1, %f2, 0f3F800000; selp.f32 %f1, 0f3F800000, 0f00000000, %p1; mov.b32 %r6, %f1;", ~(SINGLES < 1)),
    # 1 - 2^-60, rounded down and to the nearest
    ("mov.f32 %f3, 0f30800000; fma.rm.f32 %f1, %f3, 0fB0800000, 0f3F800000; mov.b32 %r6, %f1;", np.full(THREADS, BELOW_1)),
    ("mov.f32 %f3, 0f30800000; fma.rn.f32 %f1, %f3, 0fB0800000, 0f3F800000; mov.b32 %r6, %f1;", np.ones(THREADS)),
    # (1 + 2^-23)^2 - 1 - 2^-22: one rounding or two
    ("mov.f32 %f3, 0f3F800001; fma.rn.f32 %f1, %f3, %f3, 0fBF800002; mov.b32 %r6, %f1;", np.full(THREADS, 2.0**-46)),
    ("mov.f32 %f3, 0f3F800001; mul.rn.f32 %f1, %f3, %f3; add.rn.f32 %f1, %f1, 0fBF800002; mov.b32 %r6, %f1;", np.zeros(THREADS)),
]  # fmt: skip


@pytest.mark.parametrize("body, expected", FLOATS)
def test_floats(monkeypatch, body, expected):
    given = run(monkeypatch, body, SINGLES).view(np.float32)
    np.testing.assert_array_equal(given, np.asarray(expected, np.float32))


STORE, LOAD = "st.shared.u32 [%r5], %r2; ", "ld.shared.u32 %r6, [%r7]; "
NEXT_LANE, NEXT_WARP = "xor.b32 %r7, %r5, 4; ", "xor.b32 %r7, %r5, 128; "
FAULTS = [
    ("setp.eq.s32 %p1, %r1, 3; @%p1 bra $L__END; bar.sync 0;", "63 threads wait at a barrier for threads that never come"),
    ("ld.shared.u32 %r6, [%r5];", "shared memory at 0x0 is read before it is written"),
    (STORE + NEXT_LANE + LOAD, "thread 0: shared memory at 0x4 is read before it is written"),
    ("st.shared.u32 [%r5], %r2; xor.b32 %r7, %r5, 4; st.shared.u32 [%r7], %r2;", "race for shared memory"),
    (STORE + NEXT_LANE + "bar.warp.sync -1; " + LOAD, None),
    (STORE + NEXT_LANE + "vote.sync.any.pred %p1, 1, -1; " + LOAD, "race for shared memory"),
    (STORE + NEXT_WARP + "bar.warp.sync -1; " + LOAD, "shared memory"),
    (STORE + NEXT_WARP + "bar.sync 0; " + LOAD, None),
    (STORE + NEXT_WARP + "bar.sync 0; " + LOAD + "st.shared.u32 [%r5], %r6;", "race for shared memory"),
    (STORE + NEXT_WARP + "bar.sync 0; " + LOAD + "bar.sync 0; st.shared.u32 [%r5], %r6;", None),
    ("st.shared.u32 [%r4], %r2;", "thread 1: race for shared memory at 0x0 with thread 0"),
    ("ld.global.u32 %r6, [%rd4+4];", "thread 63: global memory at"),
    ("ld.global.u32 %r6, [%rd4+2];", "address 0x.* is not aligned to 4 bytes"),
    ("ld.global.v2.u32 {%r6, %r7}, [%rd1+4];", "is not aligned to 8 bytes"),
    ("ld.shared.u32 %r6, [%r4+256];", "shared memory at 0x100, beyond its end"),
    ("vote.sync.any.pred %p1, 1, 15;", "lanes 0xf of a warp only"),
]  # fmt: skip


@pytest.mark.parametrize("body, fault", FAULTS)
def test_faults_are_reported(monkeypatch, body, fault):
    if fault is None:
        run(monkeypatch, body, WORDS)
        return
    with pytest.raises(RuntimeError, match=f"given, block .0, 0., .*{fault}"):
        run(monkeypatch, body, WORDS)


VOTE, SYNC, WARP_SYNC = "bar.red.or.pred \t%p2, 0, %p1;", "bar.sync \t0;", "bar.warp.sync \t-1;"
BARRIERS = {  # of the blend kernels: text, and index among equal texts
    "blend_forward": [(VOTE, 0), (SYNC, 0)],
    "blend_backward": [(VOTE, 0), (SYNC, 0), (SYNC, 1), (WARP_SYNC, 0)],
}


def without(name: str, barrier: str, which: int) -> str:
    """Returns a blend kernel without one of its barriers."""
    before = cuda_launch.ptx("blend_3", name).split(barrier)
    assert len(before) == sum(b == barrier for b, _ in BARRIERS[name]) + 1
    instead = "mov.pred %p2, -1;" if barrier == VOTE else ""
    return barrier.join(before[: which + 1]) + instead + barrier.join(before[which + 1 :])


@pytest.mark.parametrize(
    "name, barrier, which", [(name, *which) for name, all_of in BARRIERS.items() for which in all_of]
)
def test_every_barrier_of_the_blend_is_needed(monkeypatch, name, barrier, which):
    broken = {(kernel, *which): without(kernel, *which) for kernel, all_of in BARRIERS.items() for which in all_of}
    route = make_route((*shipped("binning", "blend_3"), *broken.values()))
    scene, ptx = Scene(flat(150, opacity=0.03, sigma=4.0), 3), cuda_launch.ptx
    text = broken[name, barrier, which]

    def draw():
        kernels = functools.partial(rasterize_cuda, max_intersections=2048)
        with cuda_launch.forced_route(route):
            return jax.block_until_ready(with_gradients(kernels, scene))

    draw()
    jax.clear_caches()  # jax 0.12 caches traces, which contain the PTX
    monkeypatch.setattr(cuda_launch, "ptx", lambda program, kernel: text if kernel == name else ptx(program, kernel))
    with pytest.raises(RuntimeError, match=f"{name}, .*(race for shared memory|read before it is written)"):
        draw()
    jax.clear_caches()  # traces of the broken kernel


def test_too_many_threads_are_refused(monkeypatch):
    text = text_of("mov.u32 %r6, 0;").replace(")\n{", ")\n.maxntid 32, 1, 1\n{")
    monkeypatch.setattr(cuda_launch, "ptx", lambda program, name: text)
    shape, block = jax.ShapeDtypeStruct((THREADS,), jnp.uint32), cuda_launch.Kernel("", "given", THREADS)
    with pytest.raises(RuntimeError, match="64 threads, more than it is compiled for"):
        jax.block_until_ready(
            cuda_launch.launch(block, [shape], jnp.asarray(WORDS), grid=(1, 1), route=make_route((text,)))
        )


def test_an_unknown_text_is_refused(monkeypatch):
    with pytest.raises(RuntimeError, match="no kernel given of this text"):
        run(monkeypatch, "mov.u32 %r6, 12345;", WORDS)
