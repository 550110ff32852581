"""The machine that runs compiled kernels where there is no GPU: its instructions, and the faults that it finds."""

from __future__ import annotations

import numpy as np
import pytest
from assembly import COPIES, HALF, ORDERS, halves, operands, run, word
from ptx import FaultError, Order
from ptx.memory import SHARED_AT

NAN = float("nan")


@pytest.mark.parametrize(
    ("operation", "operands", "result"),
    [
        ("mul.lo.s32", (-3, 1 << 30), -3 << 30),
        ("mul.hi.u32", (0xFFFFFFFF, 0xFFFFFFFE), 0xFFFFFFFD),
        ("mul.hi.s32", (-3, 1 << 30), -1),
        ("mad.lo.s32", (7, -5, 4), -31),
        ("div.s32", (-7, 2), -3),
        ("rem.s32", (-7, 2), -1),
        ("popc.b32", (0xF0000001,), 5),
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
        ("rsqrt.approx.ftz.f32", (16.0,), 0.25),
        ("rsqrt.approx.ftz.f32", (float("inf"),), 0.0),
        ("neg.f32", (0.0,), -0.0),
        ("cvt.rzi.s32.f32", (-1.9,), -1),
        ("cvt.rzi.s32.f32", (3e9,), (1 << 31) - 1),
        ("cvt.rzi.s32.f32", (NAN,), 0),
        ("cvt.rmi.f32.f32", (-1.5,), -2.0),
        ("cvt.rn.f32.u32", (-1,), 2.0**32),
        ("cvt.rn.f32.s32", (-1,), -1.0),
        ("cvt.rn.bf16x2.f32", (1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8), 0x3F803F82),
        ("cvt.rn.f16x2.f32", (1.0, -2.0), 0x3C00C000),
        ("min.f32", (3.0, 1.0, 2.0), 1.0),
        ("max.NaN.f32", (3.0, NAN, 2.0), NAN),
        ("max.bf16x2", (0x3F80C000, 0xBF804000), 0x3F804000),
    ],
)
def test_operations(operation: str, operands: tuple[float, ...], result: float) -> None:
    loads = "\n".join(f"mov.b32 %r{10 + at}, {word(each)};" for at, each in enumerate(operands))
    sources = ", ".join(f"%r{10 + at}" for at in range(len(operands)))
    out = run(f"{loads}\n{operation} %r20, {sources};\nst.global.b32 [%rd1], %r20;", np.zeros(64, np.uint32))
    assert set(out.tolist()) == {word(result)}


def test_two_numbers_at_a_time() -> None:
    body = f"""
        mov.b32 %r10, {word(1.5)}; mov.b32 %r11, {word(-2.0)};
        mov.b64 %rd10, {{%r10, %r11}}; mov.b64 %rd11, {{%r11, %r19}};
        fma.rn.f32x2 %rd12, %rd10, %rd10, %rd10; mul.f32x2 %rd13, %rd12, %rd11;
        mov.b64 {{%r12, %r13}}, %rd12; mov.b64 {{%r14, %r15}}, %rd13;
        add.f32 %r16, %r12, %r13; add.f32 %r16, %r16, %r14; st.global.b32 [%rd1], %r16;"""  # nobody wrote %r19
    assert set(run(body, np.zeros(64, np.float32)).tolist()) == {3.75 + 2.0 - 7.5}


@pytest.mark.parametrize(("kind", "half"), [("f16", 0xC100), ("bf16", 0xC020)])  # -2.5
def test_a_half_and_a_float(kind: str, half: int) -> None:
    body = f"""
        mov.b16 %rs0, {half}; mov.b32 %r10, {word(0.75)}; sub.rn.f32.{kind} %r11, %rs0, %r10;
        fma.rn.f32.{kind} %r11, %rs0, %rs0, %r11; st.global.b32 [%rd1], %r11;"""
    assert set(run(body, np.zeros(64, np.float32)).tolist()) == {6.25 - 3.25}


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
    # Of a NaN and a number the number, unless a NaN is asked for.
    numbers = f"cvt.rn.f32.u32 %r10, %r0; setp.eq.s32 %p0, %r0, 33; selp.b32 %r10, {word(NAN)}, %r10, %p0;"
    for reduction, result in (("max.f32", 63.0), ("min.f32", 32.0), ("max.NaN.f32", NAN)):
        body = f"{numbers} redux.sync.{reduction} %r11, %r10, -1; st.global.b32 [%rd1], %r11;"
        np.testing.assert_array_equal(run(body, np.zeros(64, np.float32))[32:], np.full(32, result))
    out = run("redux.sync.add.s32 %r10, %r0, -1; st.global.b32 [%rd1], %r10;", np.zeros(64, np.int32))
    assert out.tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32


# Every thread writes its place in shared memory and reads its neighbour's, in its warp or in the next one.
NEIGHBOUR = """
    st.shared.b32 [%r1], %r0; WAIT
    add.s32 %r10, %r0, STEP; and.b32 %r10, %r10, 63; shl.b32 %r10, %r10, 2; add.s32 %r10, %r10, %r5;
    ld.shared.b32 %r11, [%r10]; st.global.b32 [%rd1], %r11;
"""


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
        ("fma.rn.f64 %rd10, %rd0, %rd0, %rd0;", "does not know: fma"),
        ("add.f32 %r10, %r0, %r0, %r0;", "does not know: add"),
        ("add.rz.f32 %r10, %r0, %r0;", "does not know: add"),
        ("add.ftz.f32x2 %rd10, %rd0, %rd0;", "does not know: add"),
        ("redux.sync.add.f32 %r10, %r0, -1;", "does not know: redux"),
        ("mul.hi.u64 %rd10, %rd0, %rd0;", "does not know: mul"),
        ("cvt.rp.f32.f64 %r10, %rd0;", "a form that this machine does not know: cvt.rp"),
        ("setp.lt.s32 %p0, %r0, 40; @%p0 bar.sync 0;", "a barrier that not all reach"),
        ("setp.lt.s32 %p0, %r0, 40; @%p0 shfl.sync.idx.b32 %r10, %r0, 0, 31, -1;", "a part of a warp"),
    ],
)
def test_faults_are_named(body: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        run(body, np.zeros(64, np.int32))


@pytest.mark.parametrize("order", ORDERS)
def test_who_took_no_guarded_load_may_hand_on_what_its_register_holds(order: Order) -> None:
    # As in a reduction's last step: all warps shuffle, and the first one's result counts.
    body = """
        st.shared.b32 [%r1], %r0; bar.sync 0; setp.lt.s32 %p0, %r0, 32; @%p0 ld.shared.b32 %r10, [%r1];
        shfl.sync.bfly.b32 %r11, %r10, 1, 31, -1; @%p0 st.global.b32 [%rd1], %r11;"""
    out = run(body, np.zeros(64, np.int32), order=order)
    assert out.tolist() == [n ^ 1 for n in range(32)] + [0] * 32


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


# Each lane's 16 bytes of the second tensor into its place in shared memory; %r12 is another lane's place.
ROWS = """
    ld.param.b64 %rd2, [k_param_1]; mad.wide.u32 %rd2, %r0, 16, %rd2; ld.global.v4.b32 {%r20,%r21,%r22,%r23}, [%rd2];
    shl.b32 %r10, %r0, 4; add.s32 %r10, %r10, %r5; xor.b32 %r11, %r0, 5; shl.b32 %r12, %r11, 4; add.s32 %r12, %r12, %r5;
"""


def pairs(matrices: np.ndarray) -> np.ndarray:
    """Of 8x8 matrices uint16 [N, 8, 8] what each lane l holds, uint32 [N, 32]: of row l / 4 two from 2 (l % 4) on."""
    lane = np.arange(32)
    low, high = (matrices[:, lane // 4, 2 * (lane % 4) + each].astype(np.uint32) for each in (0, 1))
    return low | high << np.uint32(16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_small_matrices_are_loaded_and_stored(count: int, transposed: bool) -> None:
    # The rows lie in another order than the lanes that point at them.
    rows = np.random.default_rng(0).integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    matrices = rows[np.arange(32) ^ 5].reshape(4, 8, 8)[:count]
    held = pairs(matrices.swapaxes(1, 2) if transposed else matrices)
    registers = ",".join(f"%r{30 + n}" for n in range(count))
    form = f"sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"

    body = (
        f"{ROWS} st.shared.v4.b32 [%r10], {{%r20,%r21,%r22,%r23}}; bar.sync 0; ldmatrix.{form} {{{registers}}}, [%r12];"
    )
    stores = "".join(f"st.global.b32 [%rd1+{128 * n}], %r{30 + n};" for n in range(count))
    out = run(body + stores, np.zeros((count, 32), np.uint32), threads=32, others=[rows])
    assert out.reshape(count, 32).tolist() == held.tolist()

    loads = "".join(f"ld.global.b32 %r{30 + n}, [%rd3+{128 * n}];" for n in range(count))
    body = f"""{ROWS} ld.param.b64 %rd3, [k_param_2]; mad.wide.u32 %rd3, %r0, 4, %rd3; {loads}
        stmatrix.{form} [%r12], {{{registers}}}; bar.sync 0; ld.shared.v4.b32 {{%r20,%r21,%r22,%r23}}, [%r10];
        mad.wide.u32 %rd1, %r0, 16, %rd0; st.global.v4.b32 [%rd1], {{%r20,%r21,%r22,%r23}};"""
    out = run(body, np.zeros((32, 8), np.uint16), threads=32, others=[rows, held]).reshape(32, 8)
    written = np.full((32, 8), 0xFFFF, np.uint16)
    written[(np.arange(32) ^ 5)[: 8 * count]] = matrices.reshape(-1, 8)
    assert out.tolist() == written.tolist()


COLUMNS = 128  # of B


def warpgroup_product(
    swizzle: int,
    left: str,
    right: str,
    kind: str,
    order: Order,
    fence: str = "fence.proxy.async.shared::cta;",
) -> tuple[np.ndarray, np.ndarray]:
    """A kernel's 2 A B [64, COLUMNS], once in place of what was there and once added to it, and NumPy's.

    left, right : where A and B are: in shared memory, "by depth" or "transposed"; A also in "registers"
    """
    generator = np.random.default_rng(0)
    A, B = generator.integers(-4, 5, (64, 16)), generator.integers(-4, 5, (COLUMNS, 16))
    image, words = operands(swizzle, kind, (A, left), (B, right))
    # The figures of A's and D's registers: where each thread's first elements are, and from there the others.
    thread = np.arange(128)
    row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
    parts = (A[row[:, None] + n % 2 * 8, column[:, None] + n // 2 * 8 + np.arange(2)] for n in range(4))
    held = [halves(part, kind).view(np.uint32)[:, 0] for part in parts]
    loads = "".join(
        f"ld.param.b64 %rd3, [k_param_{2 + n}]; mad.wide.u32 %rd3, %r0, 4, %rd3; ld.global.b32 %r{24 + n}, [%rd3];"
        for n in range(4)
    )
    sums = ",".join(f"%f{n}" for n in range(COLUMNS // 2))
    source = "{%r24,%r25,%r26,%r27}" if left == "registers" else "%rd4"
    product = f"wgmma.mma_async.sync.aligned.m64n{COLUMNS}k16.f32.{kind}.{kind} {{{sums}}}, {source}, %rd5"
    flags = ", ".join(["1", "1", *(str(int(each == "transposed")) for each in (left, right) if each != "registers")])
    stores = "".join(f"st.global.b32 [%rd1+{512 * n}], %f{n};" for n in range(COLUMNS // 2))
    body = f"""
        ld.param.b64 %rd2, [k_param_1]; mad.wide.u32 %rd2, %r0, 16, %rd2; shl.b32 %r10, %r0, 4; add.s32 %r10, %r10, %r5;
        {COPIES} {fence} bar.sync 0; mov.b64 %rd4, {words[0]}; mov.b64 %rd5, {words[1]}; {loads}
        setp.lt.s32 %p0, %r0, 0; setp.ge.s32 %p1, %r0, 0; wgmma.fence.sync.aligned;
        {product}, %p0, {flags}; {product}, %p1, {flags};
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; {stores}"""
    out = np.zeros((COLUMNS // 2, 128), np.float32)
    out = run(body, out, threads=128, order=order, others=[image, *held], shared=2 * HALF)
    got = np.full((64, COLUMNS), np.nan)
    for n, values in enumerate(out.reshape(COLUMNS // 2, 128)):
        got[row + n // 2 % 2 * 8, n // 4 * 8 + column + n % 2] = values
    return got, 2.0 * (A @ B.T)


@pytest.mark.parametrize("left", ["by depth", "transposed", "registers"])
@pytest.mark.parametrize("right", ["by depth", "transposed"])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_a_warpgroups_matrix_product(swizzle: int, left: str, right: str) -> None:
    for kind, order in (("bf16", Order()), ("f16", Order(late=True)), ("f16", Order(warps=True))):
        got, want = warpgroup_product(swizzle, left, right, kind, order)
        assert got.tolist() == want.tolist()


def test_a_matrix_product_of_what_was_copied_needs_a_fence_too() -> None:
    descriptor = SHARED_AT >> 4 | 128 >> 4 << 16 | 256 >> 4 << 32
    body = f"""
        ld.param.b64 %rd2, [k_param_1]; mad.wide.u32 %rd2, %r0, 16, %rd2; shl.b32 %r10, %r0, 4; add.s32 %r10, %r10, %r5;
        cp.async.cg.shared.global [%r10], [%rd2], 16;
        cp.async.wait_all; FENCE bar.sync 0; mov.b64 %rd4, {descriptor}; setp.lt.s32 %p0, %r0, 0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0,%f1,%f2,%f3}}, %rd4, %rd4, %p0, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; st.global.b32 [%rd1], %f0;"""
    ones = np.full(1024, 0x3F80, np.uint16)  # bfloat16
    with pytest.raises(FaultError, match="written without a fence"):
        run(body.replace("FENCE", ""), np.zeros(128, np.float32), threads=128, others=[ones], shared=2048)
    fenced = body.replace("FENCE", "fence.proxy.async.shared::cta;")
    out = run(fenced, np.zeros(128, np.float32), threads=128, others=[ones], shared=2048)
    assert out.tolist() == [16.0] * 128


@pytest.mark.parametrize("order", ORDERS)
def test_a_warpgroups_matrix_product_needs_a_fence(order: Order) -> None:
    with pytest.raises(FaultError, match="written without a fence"):
        warpgroup_product(128, "by depth", "transposed", "bf16", order, fence="")
