"""The machine for compiled kernels: tensor memory, and products that one thread begins (sm_100)."""

from __future__ import annotations

import numpy as np
import pytest
from assembly import COPIES, HALF, ORDERS, halves, operands, run
from ptx import FaultError, Order
from ptx.memory import SHARED_AT

COLUMNS = 64  # of B
BARRIER, TAKEN = SHARED_AT + 2 * HALF, SHARED_AT + 2 * HALF + 16
SIZE = 2 * HALF + 32

TAKE = f"""
    mov.u32 %r12, %tid.x; shr.u32 %r13, %r12, 5; setp.eq.s32 %p10, %r13, 0; mov.b32 %r14, {TAKEN};
    @%p10 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r14], 128; bar.sync 0; ld.shared.b32 %r15, [%r14];
    @%p10 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
    shl.b32 %r16, %r13, 21; add.s32 %r16, %r16, %r15;
"""
GIVE_BACK = "bar.sync 0; @%p10 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r15, 128;"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", ["32x32b", "16x32bx2"])
def test_tensor_memory_keeps_what_a_warp_stores(shape: str, order: Order) -> None:
    # Each thread stores its number and twice that; a second load takes the other shape's view of the same lanes.
    halved = shape == "16x32bx2"
    body = f"""{TAKE}
        shl.b32 %r17, %r12, 1;
        tcgen05.st.sync.aligned.{shape}.x2.b32 [%r16 + 3], {"8, " if halved else ""}{{%r12, %r17}};
        tcgen05.wait::st.sync.aligned;
        tcgen05.ld.sync.aligned.{shape}.x1.b32 {{%r18}}, [%r16 + 4]{", 8" if halved else ""};
        tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%r19}}, [%r16 + {11 if halved else 3}];
        tcgen05.wait::ld.sync.aligned;
        st.global.b32 [%rd1], %r18; st.global.b32 [%rd1+512], %r19; {GIVE_BACK}"""
    out = run(body, np.zeros((2, 128), np.int32), threads=128, order=order, shared=SIZE)
    thread = np.arange(128)
    assert out.reshape(2, 128)[0].tolist() == (2 * thread).tolist()
    if halved:  # of a warp's lanes, the first 16 hold in columns 11 and 12 what its last 16 threads stored
        first = thread % 32 < 16
        assert out.reshape(2, 128)[1][first].tolist() == (thread + 16)[first].tolist()
    else:
        assert out.reshape(2, 128)[1].tolist() == thread.tolist()


def product(
    rows: int,
    swizzle: int,
    left: str,
    right: str,
    kind: str,
    order: Order,
    fence: str = "fence.proxy.async.shared::cta;",
    wait: bool = True,
    between: str = "barrier.sync 0;",
    who: str = "elect.sync %r20|%p1, -1; and.pred %p1, %p1, %p10;",
) -> tuple[np.ndarray, np.ndarray]:
    """A kernel's 2 A B [rows, COLUMNS], once in place of what was there and once added to it, and NumPy's.

    left, right : where A and B are: in shared memory, "by depth" or "transposed"; A also in "tensor" memory
    """
    generator = np.random.default_rng(0)
    A, B = generator.integers(-4, 5, (rows, 16)), generator.integers(-4, 5, (COLUMNS, 16))
    image, words = operands(swizzle, kind, (A, left), (B, right))
    # Another field for the swizzle, and a constant.
    mode = {0: 0, 128: 2, 64: 4, 32: 6}[swizzle]
    words = [word & ((1 << 61) - 1) | mode << 61 | 1 << 46 for word in words]
    # A warp has 32 lanes, and of 64 rows 16.
    lane = np.arange(128)
    row = lane if rows == 128 else np.where(lane % 32 < 16, lane // 32 * 16 + lane % 32, -1)
    held = np.where(row[:, None] >= 0, halves(A, kind).view(np.uint32)[row], 0).astype(np.uint32)  # [128, 8]
    keep = ""
    if left == "tensor":
        parts = ",".join(f"%r{20 + n}" for n in range(8))
        loads = "".join(f"ld.global.b32 %r{20 + n}, [%rd3+{4 * n}];" for n in range(8))
        keep = f"""ld.param.b64 %rd3, [k_param_2]; mad.wide.u32 %rd3, %r12, 32, %rd3; {loads}
            tcgen05.st.sync.aligned.32x32b.x8.b32 [%r16 + {COLUMNS}], {{{parts}}}; tcgen05.wait::st.sync.aligned;"""
    shape = 1 << 4 | (kind == "bf16") * (1 << 7 | 1 << 10) | COLUMNS >> 3 << 17 | rows >> 4 << 24
    shape |= (left == "transposed") << 15 | (right == "transposed") << 16
    source = f"[%r15 + {COLUMNS}]" if left == "tensor" else "%rd4"
    multiply = f"@%p1 tcgen05.mma.cta_group::1.kind::f16 [%r15 + 0], {source}, %rd5, %r18"
    waiting = """
{
.reg .pred complete;
waitLoop:
mbarrier.try_wait.parity.shared::cta.b64 complete, [%r17], %r19;
@!complete bra.uni waitLoop;
}
"""
    loads = "".join(
        f"tcgen05.ld.sync.aligned.32x32b.x1.b32 %r20, [%r16 + {n}]; st.global.b32 [%rd1+{512 * n}], %r20;"
        for n in range(COLUMNS)
    )
    body = f"""{TAKE}
        ld.param.b64 %rd2, [k_param_1]; mad.wide.u32 %rd2, %r12, 16, %rd2;
        shl.b32 %r10, %r12, 4; add.s32 %r10, %r10, %r5; {COPIES}
        {keep} {fence} mov.b32 %r17, {BARRIER}; mov.b32 %r18, {shape}; mov.b32 %r19, 0;
        setp.eq.s32 %p0, %r12, 0; @%p0 mbarrier.init.shared::cta.b64 [%r17], 1; bar.sync 0;
        mov.b64 %rd4, {words[0]}; mov.b64 %rd5, {words[1]}; setp.lt.s32 %p2, %r12, 0; setp.ge.s32 %p3, %r12, 0;
        {who} {multiply}, %p2; {multiply}, %p3;
        @%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r17]; {between}
        {waiting if wait else ""}
        bar.sync 0; @%p0 mbarrier.inval.shared::cta.b64 [%r17]; {loads} tcgen05.wait::ld.sync.aligned; {GIVE_BACK}"""
    out = np.zeros((COLUMNS, 128), np.float32)
    out = run(body, out, threads=128, order=order, others=[image, held], shared=SIZE).reshape(COLUMNS, 128)
    got = np.full((rows, COLUMNS), np.nan)
    got[row[row >= 0]] = out.T[row >= 0]
    return got, 2.0 * (A @ B.T)


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("left", ["by depth", "transposed", "tensor"])
@pytest.mark.parametrize("right", ["by depth", "transposed"])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_a_product_that_one_thread_begins(swizzle: int, left: str, right: str, rows: int) -> None:
    for kind, order in (("bf16", Order()), ("f16", Order(late=True)), ("f16", Order(warps=True))):
        got, want = product(rows, swizzle, left, right, kind, order)
        assert got.tolist() == want.tolist()


@pytest.mark.parametrize("order", ORDERS)
def test_those_who_wait_let_others_begin(order: Order) -> None:
    # With nothing between, a warp that runs alone waits for what the first, which runs last, has not begun.
    got, want = product(64, 128, "by depth", "by depth", "bf16", order, between="")
    assert got.tolist() == want.tolist()


def test_a_product_is_there_once_it_was_waited_for() -> None:
    got, want = product(64, 128, "by depth", "by depth", "bf16", Order(late=True), wait=False)
    assert np.isnan(got).all()
    assert np.isfinite(want).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_product_needs_a_fence_and_one_thread(order: Order) -> None:
    with pytest.raises(FaultError, match="written without a fence"):
        product(64, 128, "by depth", "by depth", "bf16", order, fence="")
    with pytest.raises(FaultError, match="several threads begin what one thread must"):
        product(64, 128, "by depth", "by depth", "bf16", order, who="setp.lt.s32 %p1, %r12, 2;")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (TAKE, "was not given back"),
        (f"{TAKE} tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%r18}}, [%r15 + 0]; {GIVE_BACK}", "that are another's"),
        (f"{TAKE} tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%r18}}, [%r16 + 128]; {GIVE_BACK}", "outside of"),
        (
            f"{TAKE} tcgen05.ld.sync.aligned.16x64b.x1.b32 {{%r18}}, [%r16 + 0]; {GIVE_BACK}",
            "does not know: tcgen05.ld",
        ),
        (f"{TAKE} {GIVE_BACK.replace('128', '64')}", "are given back, but were not taken"),
        (TAKE.replace("128;", "48;"), "is not taken by 48 columns"),
        (TAKE.replace("@%p10 tcgen05.alloc", "tcgen05.alloc"), "several warps take what one warp must"),
        ("mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r5], 0;", "no barrier lies"),
        (
            """setp.eq.s32 %p1, %r0, 0; @%p1 mbarrier.init.shared::cta.b64 [%r5], 1; bar.sync 0;
            mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5], 0;""",
            "nobody has begun",
        ),
        (
            """setp.eq.s32 %p1, %r0, 0; @%p1 mbarrier.init.shared::cta.b64 [%r5], 1;
            mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5], 1;""",
            "a race, read",
        ),
    ],
)
def test_faults_are_named(body: str, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        run(body, np.zeros(128, np.int32), threads=128, shared=SIZE)
