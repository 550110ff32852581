"""The machine that runs compiled kernels where there is no GPU: its instructions, and the faults that it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import pytest
from ptx import SIDE_BY_SIDE, FaultError, Order, Pointer

REGISTERS = ".reg .pred %p<20>; .reg .b16 %rs<20>; .reg .b32 %r<40>; .reg .b64 %rd<20>;"
# %r0: the thread; %rd1: where its 4 bytes of the first tensor are, %r1 those of shared memory; %r2: the thread's number
# among all.
START = """
    mov.u32 %r0, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.s32 %r2, %r3, %r4, %r0;
    ld.param.b64 %rd0, [k_param_0]; mad.wide.u32 %rd1, %r2, 4, %rd0;
    shl.b32 %r1, %r0, 2; mov.b32 %r5, global_smem; add.s32 %r1, %r1, %r5;
"""


def run(body: str, out: Any, threads: int = 64, blocks: int = 1, order: Order = SIDE_BY_SIDE, others: Any = ()) -> Any:
    """``out`` after a kernel of ``body``, which finds it as its first argument and ``others`` behind it."""
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 k_param_{n}" for n in range(1 + len(others)))
    text = f".visible .entry k(\n{parameters}\n)\n.reqntid {threads}\n{{\n{REGISTERS}\n{START}\n{body}\nret;\n}}\n"
    arrays = [np.ascontiguousarray(each).view(np.uint8).reshape(-1) for each in (out, *others)]
    ptx.launch(ptx.parse(text), (blocks,), [Pointer(each) for each in arrays], 1024, order)
    return arrays[0].view(out.dtype)


def word(value: float | int) -> int:
    """A float's or an int's bits as an unsigned word."""
    if isinstance(value, float):
        return int(np.float32(value).view(np.uint32))
    return value % (1 << 32)


NAN = float("nan")


@pytest.mark.parametrize(
    ("operation", "operands", "result"),
    [
        ("mul.lo.s32", (-3, 1 << 30), -3 << 30),
        ("mul.hi.u32", (0xFFFFFFFF, 0xFFFFFFFE), 0xFFFFFFFD),
        ("mad.lo.s32", (7, -5, 4), -31),
        ("div.s32", (-7, 2), -3),
        ("rem.s32", (-7, 2), -1),
        ("shl.b32", (1, 31), 1 << 31),
        ("shl.b32", (1, 32), 0),
        ("shr.u32", (1 << 31, 31), 1),
        ("shr.s32", (-4, 1), -2),
        ("shr.s32", (-4, 40), -1),
        ("bfe.u32", (0xABCD, 4, 8), 0xBC),
        ("bfe.s32", (0xABCD, 8, 4), 0xB - 16),
        ("bfe.s32", (2, 1, 1), -1),
        ("prmt.b32", (0x33221100, 0x77665544, 0x5410), 0x55441100),
        ("prmt.b32", (0x80, 0, 0x1118), 0x000000FF),
        ("and.b32", (0b1100, 0b1010), 0b1000),
        ("xor.b32", (0b1100, -1), -0b1101),
        ("min.s32", (-1, 1), -1),
        ("min.u32", (-1, 1), 1),
        ("add.f32", (1.5, -0.25), 1.25),
        ("fma.rn.f32", (3.0, 2.0**-24, 1.0), 1.0 + 2.0**-22),
        ("add.ftz.f32", (2.0**-127, 0.0), 0.0),
        ("min.f32", (NAN, 2.0), 2.0),
        ("max.NaN.f32", (NAN, 2.0), NAN),
        ("div.full.f32", (1.0, float("inf")), 0.0),
        ("ex2.approx.f32", (3.0,), 8.0),
        ("neg.f32", (0.0,), -0.0),
        ("cvt.rzi.s32.f32", (-1.9,), -1),
        ("cvt.rzi.s32.f32", (3e9,), (1 << 31) - 1),
        ("cvt.rzi.s32.f32", (NAN,), 0),
        ("cvt.rmi.f32.f32", (-1.5,), -2.0),
        ("cvt.rn.f32.u32", (-1,), 2.0**32),
        ("cvt.rn.f32.s32", (-1,), -1.0),
        ("cvt.rn.bf16x2.f32", (1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8), 0x3F803F82),
        ("cvt.rn.f16x2.f32", (1.0, -2.0), 0x3C00C000),
        ("max.bf16x2", (0x3F80C000, 0xBF804000), 0x3F804000),
    ],
)
def test_operations(operation: str, operands: tuple[float, ...], result: float) -> None:
    loads = "\n".join(f"mov.b32 %r{10 + at}, {word(each)};" for at, each in enumerate(operands))
    sources = ", ".join(f"%r{10 + at}" for at in range(len(operands)))
    out = run(f"{loads}\n{operation} %r20, {sources};\nst.global.b32 [%rd1], %r20;", np.zeros(64, np.uint32))
    assert set(out.tolist()) == {word(result)}


def test_threads_that_part_at_a_branch_meet_again() -> None:
    # Each thread adds 0, 1, ... up to its own number.
    out = run(
        """
        mov.b32 %r10, 0; mov.b32 %r11, 0;
        setp.eq.s32 %p0, %r0, 0; @%p0 bra $END;
        $LOOP:
        add.s32 %r11, %r11, 1; add.s32 %r10, %r10, %r11; setp.lt.s32 %p1, %r11, %r0; @%p1 bra $LOOP;
        $END:
        bar.sync 0; st.global.b32 [%rd1], %r10;
        """.replace(":", ":\n"),
        np.zeros(64, np.int32),
    )
    assert out.tolist() == [n * (n + 1) // 2 for n in range(64)]


def test_lanes_pass_values_to_each_other() -> None:
    lane = np.arange(64) % 32
    for shuffle, source in (
        ("bfly.b32 %r10, %r0, 5, 31, -1", np.arange(64) ^ 5),
        ("up.b32 %r10, %r0, 3, 0, -1", np.where(lane >= 3, np.arange(64) - 3, np.arange(64))),
        ("down.b32 %r10, %r0, 3, 31, -1", np.where(lane < 29, np.arange(64) + 3, np.arange(64))),
        ("idx.b32 %r10, %r0, 7, 31, -1", np.arange(64) - lane + 7),
    ):
        out = run(f"shfl.sync.{shuffle}; st.global.b32 [%rd1], %r10;", np.zeros(64, np.int32))
        assert out.tolist() == source.tolist()
    out = run("redux.sync.add.s32 %r10, %r0, -1; st.global.b32 [%rd1], %r10;", np.zeros(64, np.int32))
    assert out.tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


# Every thread writes its place in shared memory and reads its neighbour's, in its warp or in the next one.
NEIGHBOUR = """
    st.shared.b32 [%r1], %r0; WAIT
    add.s32 %r10, %r0, STEP; and.b32 %r10, %r10, 63; shl.b32 %r10, %r10, 2; add.s32 %r10, %r10, %r5;
    ld.shared.b32 %r11, [%r10]; st.global.b32 [%rd1], %r11;
"""
ORDERS = [Order(), Order(warps=True), Order(late=True)]


@pytest.mark.parametrize(
    ("wait", "step", "sound"),
    [
        ("", 0, True),
        ("", 1, False),
        ("", 32, False),
        ("bar.warp.sync -1;", 1, False),  # of the warp's last thread, the neighbour is in the next
        ("bar.warp.sync -1;", 32, False),
        ("bar.sync 0;", 1, True),
        ("bar.sync 0;", 32, True),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_race_in_shared_memory_is_found(wait: str, step: int, sound: bool, order: Order) -> None:
    body, out = NEIGHBOUR.replace("WAIT", wait).replace("STEP", str(step)), np.zeros(64, np.int32)
    if sound:
        assert run(body, out, order=order).tolist() == [(n + step) % 64 for n in range(64)]
    else:
        with pytest.raises(
            FaultError, match=r"shared memory.*a race, (read|written) while another thread may be there"
        ):
            run(body, out, order=order)


def test_a_warps_own_barrier_orders_its_threads() -> None:
    within = NEIGHBOUR.replace("add.s32 %r10, %r0, STEP; and.b32 %r10, %r10, 63", "xor.b32 %r10, %r0, 1")
    with pytest.raises(FaultError, match="a race"):
        run(within.replace("WAIT", ""), np.zeros(64, np.int32))
    out = run(within.replace("WAIT", "bar.warp.sync -1;"), np.zeros(64, np.int32))
    assert out.tolist() == [n ^ 1 for n in range(64)]


def test_what_was_read_may_not_be_overwritten_before_a_barrier() -> None:
    body = """
        mov.b32 %r10, 7; xor.b32 %r11, %r1, 4; st.shared.b32 [%r1], %r0; bar.sync 0;
        ld.shared.b32 %r12, [%r11]; WAIT st.shared.b32 [%r1], %r10; st.global.b32 [%rd1], %r12;
    """
    with pytest.raises(FaultError, match="a race, written"):
        run(body.replace("WAIT", ""), np.zeros(64, np.int32))
    out = run(body.replace("WAIT", "bar.sync 0;"), np.zeros(64, np.int32))
    assert out.tolist() == [n ^ 1 for n in range(64)]


def test_blocks_may_not_meet_but_to_write_the_same() -> None:
    same = "mov.b32 %r10, 5; st.global.b32 [%rd0], %r10;"
    assert run(same, np.zeros(1, np.int32), threads=32, blocks=2).tolist() == [5]
    with pytest.raises(FaultError, match="tensor 0, byte 0: a race"):
        run("st.global.b32 [%rd0], %r3;", np.zeros(1, np.int32), threads=32, blocks=2)
    with pytest.raises(FaultError, match="different values to one place in one instruction"):
        run("st.global.b32 [%rd0], %r0;", np.zeros(1, np.int32), threads=32)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%rd1+4], %r0;", "outside of every tensor"),
        ("ld.global.b32 %r10, [%rd1+-4];", "outside of"),
        ("ld.shared.b32 %r10, [%r1+1024];", "shared memory: an access outside of it"),
        ("ld.global.b32 %r10, [%rd1+2];", "no multiple of it"),
        ("add.s32 %r10, %r11, %r0;", "%r11 is read before it is written"),
        ("frob.b32 %r10, %r0;", "does not know: frob"),
        ("cvt.rp.f32.f64 %r10, %rd0;", "a form that this machine does not know: cvt.rp"),
        ("setp.lt.s32 %p0, %r0, 40; @%p0 bar.sync 0;", "a barrier that not all reach"),
        ("setp.lt.s32 %p0, %r0, 40; @%p0 shfl.sync.idx.b32 %r10, %r0, 0, 31, -1;", "a part of a warp"),
    ],
)
def test_faults_are_named(body: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        run(body, np.zeros(64, np.int32))


def test_a_copy_is_there_once_it_was_waited_for() -> None:
    body = """
        ld.param.b64 %rd2, [k_param_1]; mad.wide.u32 %rd2, %r0, 4, %rd2;
        cp.async.ca.shared.global [%r1], [%rd2], 4, 4; cp.async.commit_group; WAIT
        ld.shared.b32 %r10, [%r1]; st.global.b32 [%rd1], %r10;
    """
    source = np.arange(64, dtype=np.int32) * 3
    for wait, there in (("cp.async.wait_group 0;", True), ("cp.async.wait_group 1;", False), ("", False)):
        text = body.replace("WAIT", wait)
        assert run(text, np.zeros(64, np.int32), others=[source]).tolist() == source.tolist()
        late = run(text, np.zeros(64, np.int32), others=[source], order=Order(late=True)).tolist()
        assert late == (source.tolist() if there else [-1] * 64)


@pytest.mark.parametrize(
    ("shape", "kind", "depth"), [("m16n8k16", "bf16", 16), ("m16n8k16", "f16", 16), ("m16n8k8", "tf32", 8)]
)
def test_a_warps_matrix_product(shape: str, kind: str, depth: int) -> None:
    # Small whole numbers, which every format holds exactly; the registers' layout is the instruction set's.
    generator = np.random.default_rng(0)
    a, b, c = (generator.integers(-4, 5, size) for size in ((16, depth), (depth, 8), (16, 8)))
    group, quad, each = np.arange(32) // 4, np.arange(32) % 4, 1 if kind == "tf32" else 2

    def bits(values: np.ndarray) -> np.ndarray:
        """[32, each] as a register's word a lane."""
        if kind == "f16":
            return np.ascontiguousarray(values.astype(np.float16)).view(np.uint32)[:, 0]
        words = values.astype(np.float32).view(np.uint32)
        if kind == "tf32":
            return words[:, 0]
        return words[:, 0] >> 16 | words[:, 1] & np.uint32(0xFFFF0000)

    column = quad[:, None] * each + np.arange(each)
    A = [bits(a[(group + 8 * (n % 2))[:, None], column + 4 * each * (n // 2)]) for n in range(4)]
    B = [bits(b[column + 4 * each * n, group[:, None]]) for n in range(2)]
    C = [c[group + 8 * (n // 2), 2 * quad + n % 2].astype(np.float32).view(np.uint32) for n in range(4)]
    loads = "".join(
        f"ld.param.b64 %rd2, [k_param_{1 + n}]; mad.wide.u32 %rd2, %r0, 4, %rd2; ld.global.b32 %r{10 + n}, [%rd2];"
        for n in range(10)
    )
    product = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32"
    stores = "".join(f"st.global.b32 [%rd1+{128 * n}], %r{16 + n};" for n in range(4))
    body = (
        f"{loads} {product} {{%r16,%r17,%r18,%r19}}, {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%r16,%r17,%r18,%r19}};"
    )
    out = run(body + stores, np.zeros((4, 32), np.float32), threads=32, others=[*A, *B, *C]).reshape(4, 32)
    for n in range(4):
        assert out[n].tolist() == (a @ b + c)[group + 8 * (n // 2), 2 * quad + n % 2].tolist()
