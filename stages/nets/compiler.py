"""Loops over vectors of floats, compiled for this CPU by LLVM, which llvmlite brings along: no compiler is needed.

They are written in LLVM's own language, by Python that goes through what is to be unrolled. A sum is made of `fma`s in
the order that is written, each rounded once, and nothing lets LLVM rearrange them: every CPU comes to the same bits.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from llvmlite.ir import IRBuilder, Value
from torch import Tensor, nn

LANES = 16  # floats that are computed at a time: a register of AVX-512, two of AVX2
WORTH_A_THREAD = 1 << 21  # fmas; to wake a thread takes as long as some 500,000 of them

FLOAT, BYTE, INT, POINTER = ir.FloatType(), ir.IntType(8), ir.IntType(64), ir.PointerType()
# What writes the body of a function of pointers to floats, and of a first number and the one after the last.
Body = Callable[[IRBuilder, list[Value], Value, Value], None]
Function = Callable[..., None]  # of a task, as `_share` has it
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of torch's modules

_engines: list[llvm.ExecutionEngine] = []  # which own the code


def compiled(*bodies: tuple[Body, int]) -> list[Function]:
    """Return a function for each body and its number of pointers; the tensors behind the pointers do not overlap."""
    module = ir.Module()
    for number, (body, pointers) in enumerate(bodies):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * pointers + [INT] * 2), f"f{number}")
        for argument in function.args[:pointers]:
            argument.add_attribute("noalias")
        b = IRBuilder(function.append_basic_block())
        body(b, list(function.args[:pointers]), *function.args[pointers:])
        b.ret_void()
        _share(module, function, f"shared{number}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    host = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, host)
    engine.finalize_object()
    _engines.append(engine)
    return [FUNCTION(engine.get_function_address(f"shared{number}")) for number in range(len(bodies))]


def _share(module: ir.Module, function: ir.Function, name: str) -> None:
    """Write a function that lets `function` do the parts of a task, one after the other, while there are any left.

    Any number of threads may call it with the same task, which is numbers, int64: the next part, how many there are,
    the function's pointers, where each part begins, and where the last one ends.
    """
    shared = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
    b, [task] = IRBuilder(shared.append_basic_block()), shared.args
    n_pointers = len(function.args) - 2
    pointers = [b.load(at(b, task, 2 + number, INT), typ=POINTER) for number in range(n_pointers)]
    head, body, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    part = b.atomic_rmw("add", task, INT(1), "monotonic")
    b.cbranch(b.icmp_signed("<", part, b.load(at(b, task, 1, INT), typ=INT)), body, after)
    b.position_at_end(body)
    begin = b.add(part, INT(2 + n_pointers))
    b.call(function, [*pointers, *(b.load(at(b, task, b.add(begin, INT(n)), INT), typ=INT) for n in (0, 1))])
    b.branch(head)
    b.position_at_end(after)
    b.ret_void()


def run(function: Function, tensors: Sequence[Tensor], n: int, work: int, step: int = 1) -> None:
    """Call the function for the numbers below n, in as many threads as torch has, or as `work`, so many fmas, is worth.

    Each begins at a multiple of `step`.
    """
    steps = -(-n // step)
    threads = max(1, min(torch.get_num_threads(), steps, work // WORTH_A_THREAD))
    ends = [min(n, step * (steps * thread // threads)) for thread in range(threads + 1)]
    numbers = [0, threads, *(tensor.data_ptr() for tensor in tensors), *ends]
    task = (ctypes.c_int64 * len(numbers))(*numbers)
    if threads == 1:
        function(task)
    elif parallel := openmp():
        # All of them, always: for another number OpenMP ends some, and starts them anew for the next.
        parallel(function, task, torch.get_num_threads(), 0)
    else:
        others = [_pool().submit(_call, function, task, tensors) for _ in range(threads - 1)]
        function(task)
        for other in others:
            other.result()


def _call(function: Function, task: Any, _tensors: Sequence[Tensor]) -> None:
    # A thread has the tensors, too: after Ctrl-C it may write to them when nobody else has them any more.
    function(task)


@lru_cache
def openmp() -> Callable[..., None] | None:
    """Return what calls a function in torch's own threads, where that is there: their number comes third.

    They are awake right after and before what torch does in them, and need no turn of Python's.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = [FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1024, thread_name_prefix="compiled")  # they start when they are needed


def is_for(*modules: nn.Module, x: Tensor) -> bool:
    """Return whether what is compiled can stand for these modules: on CPUs, in float32, and where nothing watches them.

    A mixed precision is torch's own; what is exported writes down what torch does; hooks are called by their
    modules. Second derivatives are not compiled: they need torch's layers, one after the other.
    """
    tensors = [x, *(parameter for module in modules for parameter in module.parameters())]
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and not any(getattr(module, hooks) for module in modules for hooks in HOOKS)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@contextmanager
def loop(b: IRBuilder, first: Value, last: Value, sums: list[Value] | None = None) -> Iterator[Value]:
    """For each number from `first` that is below `last`. The `sums` go from one to the next; the body replaces them."""
    sums = [] if sums is None else sums
    before, head = b.block, b.append_basic_block()
    body, after = b.append_basic_block(), b.append_basic_block()
    b.branch(head)
    b.position_at_end(head)
    own = [b.phi(value.type) for value in (first, *sums)]
    for phi, value in zip(own, (first, *sums), strict=True):
        phi.add_incoming(value, before)
    index, sums[:] = own[0], own[1:]
    b.cbranch(b.icmp_signed("<", index, last), body, after)
    b.position_at_end(body)
    yield index
    for phi, value in zip(own, (b.add(index, INT(1)), *sums), strict=True):
        phi.add_incoming(value, b.block)
    sums[:] = own[1:]
    b.branch(head)
    b.position_at_end(after)


def blocks(b: IRBuilder, width: int) -> Iterator[tuple[Value, int]]:
    """Go through `width` numbers by vectors: yield the first, and how many, a power of two, smaller at the end.

    AVX-512 has so many registers that twice LANES at a time share what is spread; other CPUs would run out of them.
    """
    lanes, rest = 2 * LANES if llvm.get_host_cpu_features().get("avx512f") else LANES, width
    while rest:
        while lanes > rest:
            lanes //= 2
        with loop(b, INT(0), INT(rest // lanes)) as block:
            yield b.add(INT(width - rest), b.mul(block, INT(lanes))), lanes
        rest %= lanes


def at(b: IRBuilder, pointer: Value, index: Value | int, kind: ir.Type = FLOAT) -> Value:
    """Return the pointer to what is `index` values of that kind further on."""
    return b.gep(pointer, [INT(index) if isinstance(index, int) else index], source_etype=kind)


def load(b: IRBuilder, pointer: Value, lanes: int, kind: ir.Type = FLOAT) -> Value:
    """Return the vector that is there."""
    return b.load(pointer, typ=ir.VectorType(kind, lanes), align=4 if kind == FLOAT else 1)


def store(b: IRBuilder, value: Value, pointer: Value) -> None:
    """Put a vector there."""
    b.store(value, pointer, align=4 if value.type.element == FLOAT else 1)


def constant(value: float, lanes: int, kind: ir.Type = FLOAT) -> Value:
    """Return a vector that has the value in every lane."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def spread(b: IRBuilder, pointer: Value, lanes: int) -> Value:
    """Return a vector that has the float that is there in every lane."""
    undefined = ir.Constant(ir.VectorType(FLOAT, lanes), ir.Undefined)
    vector = b.insert_element(undefined, b.load(pointer, typ=FLOAT), INT(0))
    return b.shuffle_vector(vector, undefined, constant(0, lanes, ir.IntType(32)))


def fma(b: IRBuilder, x: Value, y: Value, z: Value) -> Value:
    """Return x * y + z, rounded once."""
    name = f"llvm.fma.v{x.type.count}f32"
    known = b.module.globals.get(name)
    return b.call(known or ir.Function(b.module, ir.FunctionType(x.type, [x.type] * 3), name), [x, y, z])


def total(b: IRBuilder, vector: Value) -> Value:
    """Return the sum of the lanes: of the two halves, of their halves, and so on."""
    while (half := vector.type.count // 2) > 0:
        index = ir.VectorType(ir.IntType(32), half)
        low, high = (ir.Constant(index, [*range(start, start + half)]) for start in (0, half))
        vector = b.fadd(b.shuffle_vector(vector, vector, low), b.shuffle_vector(vector, vector, high))
    return b.extract_element(vector, INT(0))
