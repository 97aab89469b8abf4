"""What each instruction of PTX computes, as LLVM writes it.

`INSTRUCTIONS` has a function for each; it is given the `Function` that is written, the words after
the dots, of which the last is the kind of the operands, and the operands.
"""

import functools
import re

FLOAT = {32: "float", 64: "double"}
ROUND = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}

FORMS = {  # of floats and of integers; T is the type, N its width, S its sign; a, b, c are given
    "add": ("fadd {T} {a}, {b}", "add {T} {a}, {b}"),
    "sub": ("fsub {T} {a}, {b}", "sub {T} {a}, {b}"),
    "div": ("fdiv {T} {a}, {b}", "{S}div {T} {a}, {b}"),
    "rem": (None, "{S}rem {T} {a}, {b}"),
    "neg": ("fneg {T} {a}", "sub {T} 0, {a}"),
    "abs": ("call {T} @llvm.fabs.f{N}({T} {a})", "call {T} @llvm.abs.i{N}({T} {a}, i1 false)"),
    "and": (None, "and {T} {a}, {b}"),
    "or": (None, "or {T} {a}, {b}"),
    "xor": (None, "xor {T} {a}, {b}"),
    "not": (None, "xor {T} {a}, -1"),
    "fma": ("call {T} @llvm.fma.f{N}({T} {a}, {T} {b}, {T} {c})", None),
    "sqrt": ("call {T} @llvm.sqrt.f{N}({T} {a})", None),
    "ex2": ("call {T} @llvm.exp2.f{N}({T} {a})", None),
    "lg2": ("call {T} @llvm.log2.f{N}({T} {a})", None),
    "sin": ("call {T} @llvm.sin.f{N}({T} {a})", None),
    "cos": ("call {T} @llvm.cos.f{N}({T} {a})", None),
    "min": (
        "call {T} @llvm.minnum.f{N}({T} {a}, {T} {b})",
        "call {T} @llvm.{S}min.i{N}({T} {a}, {T} {b})",
    ),
    "max": (
        "call {T} @llvm.maxnum.f{N}({T} {a}, {T} {b})",
        "call {T} @llvm.{S}max.i{N}({T} {a}, {T} {b})",
    ),
}


def width_of(kind):
    """Bits of a kind of number."""
    return 1 if kind == "pred" else int(kind[1:])


def type_of(kind):
    """LLVM's type for it."""
    return FLOAT[width_of(kind)] if kind[0] == "f" else f"i{width_of(kind)}"


def sign_of(kind):
    """How LLVM tells signed integers from others."""
    return "s" if kind[0] == "s" else "u"


def split(text):
    """Operands: at commas outside of brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\([^)]*\)|[^,{(])+", text)]


def formed(forms, f, modifiers, operands):
    """One of `FORMS`."""
    kind = modifiers[-1]
    width, form = width_of(kind), forms[kind[0] != "f"]
    if form is None or {"sat", "NaN", "cc"} & set(modifiers):
        raise NotImplementedError(f"a PTX instruction with {'.'.join(modifiers)}")
    given = [f.read(operand, kind) for operand in operands[1:]]
    flush = "ftz" in modifiers and kind == "f32"
    if flush:
        given = [f.flushed(value, width) for value in given]
    names = dict(zip("abc", given, strict=False))
    value = f.fresh(form.format(T=type_of(kind), N=width, S=sign_of(kind), **names))
    f.write(operands[0], kind, f.flushed(value, width) if flush else value)


def _product(f, modifiers, operands):
    """The kind and the value of a product of integers."""
    kind = modifiers[-1]
    width, change = width_of(kind), "sext" if kind[0] == "s" else "zext"
    wide = f"i{2 * width}"
    a, b = (f.fresh(f"{change} i{width} {f.read(o, kind)} to {wide}") for o in operands)
    value = f.fresh(f"mul {wide} {a}, {b}")
    if "wide" in modifiers:
        return f"{kind[0]}{2 * width}", value
    if "hi" in modifiers:
        value = f.fresh(f"lshr {wide} {value}, {width}")
    return kind, f.fresh(f"trunc {wide} {value} to i{width}")


def mul(f, modifiers, operands):
    if modifiers[-1][0] == "f":
        formed(("fmul {T} {a}, {b}", None), f, modifiers, operands)
    else:
        f.write(operands[0], *_product(f, modifiers, operands[1:]))


def mad(f, modifiers, operands):
    kind, value = _product(f, modifiers, operands[1:3])
    more = f.read(operands[3], kind)
    f.write(operands[0], kind, f.fresh(f"add i{width_of(kind)} {value}, {more}"))


def carrying(operation, takes, plain, f, modifiers, operands):
    """Sums and differences that write a carry ("cc" among the words), or take it."""
    if not takes and "cc" not in modifiers:
        plain(f, modifiers, operands)
        return
    kind = modifiers[-1]
    width = width_of(kind)
    wide = f"i{2 * width}"
    if len(operands) == 4:
        pair = _product(f, modifiers, operands[1:3])[1], f.read(operands[3], kind)
    else:
        pair = f.read(operands[1], kind), f.read(operands[2], kind)
    a, b = (f.fresh(f"zext i{width} {value} to {wide}") for value in pair)
    value = f.fresh(f"{operation} {wide} {a}, {b}")
    if takes:
        carry = f.fresh(f"zext i1 {f.fresh('load i1, ptr %cc')} to {wide}")
        value = f.fresh(f"{operation} {wide} {value}, {carry}")
    if "cc" in modifiers:
        high = f.fresh(f"lshr {wide} {value}, {width}")
        f.lines.append(f"store i1 {f.fresh(f'trunc {wide} {high} to i1')}, ptr %cc")
    f.write(operands[0], kind, f.fresh(f"trunc {wide} {value} to i{width}"))


def rcp(f, modifiers, operands):
    if modifiers[-1] == "f64" and "approx" in modifiers:  # its lower half is zero
        value = f.fresh(f"fdiv double 1.0, {f.read(operands[1], 'f64')}")
        value = f.fresh(f"bitcast double {value} to i64")
        f.write(operands[0], "b64", f.fresh(f"and i64 {value}, {-(2**32)}"))
    else:
        formed(("fdiv {T} 1.0, {a}", None), f, modifiers, operands)


def rsqrt(f, modifiers, operands):
    INSTRUCTIONS["sqrt"](f, modifiers, operands)
    formed(("fdiv {T} 1.0, {a}", None), f, modifiers, [operands[0], operands[0]])


def clz(f, modifiers, operands):
    width = width_of(modifiers[-1])
    value = f.read(operands[1], modifiers[-1])
    value = f.fresh(f"call i{width} @llvm.ctlz.i{width}(i{width} {value}, i1 false)")
    f.write(operands[0], f"b{width}", value)


def shift(left, f, modifiers, operands):
    """By more than the width: as by the width."""
    kind = modifiers[-1]
    width, signed = width_of(kind), kind[0] == "s"
    value, by = f.read(operands[1], kind), f.read(operands[2], "u32")
    by = f.fresh(f"call i32 @llvm.umin.i32(i32 {by}, i32 {width})")
    by = f.fresh(f"zext i32 {by} to i128")
    wide = f.fresh(f"{'sext' if signed else 'zext'} i{width} {value} to i128")
    how = "shl" if left else "ashr" if signed else "lshr"
    value = f.fresh(f"{how} i128 {wide}, {by}")
    f.write(operands[0], kind, f.fresh(f"trunc i128 {value} to i{width}"))


def setp(f, modifiers, operands):
    comparison, *_, kind = modifiers
    into, *given = operands
    a, b = (f.read(operand, kind) for operand in given)
    if kind[0] == "f":
        if "ftz" in modifiers:
            a, b = (f.flushed(value, 32) for value in (a, b))
        plain = f"o{comparison}" if comparison in ORDERED else f"u{comparison[:2]}"
        test = {"num": "ord", "nan": "uno"}.get(comparison, plain)
        value = f.fresh(f"fcmp {test} {type_of(kind)} {a}, {b}")
    else:
        test = UNSIGNED.get(comparison, comparison)
        sign = "" if test in ("eq", "ne") else sign_of(kind)
        value = f.fresh(f"icmp {sign}{test} {type_of(kind)} {a}, {b}")
    f.write(into, "pred", value)


def selp(f, modifiers, operands):
    kind = modifiers[-1]
    t, holds = type_of(kind), f.read(operands[3], "pred")
    a, b = (f.read(operand, kind) for operand in operands[1:3])
    f.write(operands[0], kind, f.fresh(f"select i1 {holds}, {t} {a}, {t} {b}"))


def mov(f, modifiers, operands):
    """A number, or the parts of one: ``{low, high}``."""
    kind = modifiers[-1]
    width, (into, source) = width_of(kind), operands
    if into.startswith("{"):
        value, parts = f.read(source, f"b{width}"), split(into[1:-1])
        short = width // len(parts)
        for i, part in enumerate(parts):
            moved = f.fresh(f"lshr i{width} {value}, {i * short}")
            f.write(part, f"b{short}", f.fresh(f"trunc i{width} {moved} to i{short}"))
    elif source.startswith("{"):
        parts, total = split(source[1:-1]), "0"
        short = width // len(parts)
        for i, part in enumerate(parts):
            value = f.fresh(f"zext i{short} {f.read(part, f'b{short}')} to i{width}")
            value = f.fresh(f"shl i{width} {value}, {i * short}")
            total = f.fresh(f"or i{width} {total}, {value}")
        f.write(into, f"b{width}", total)
    else:
        f.write(into, kind, f.read(source, kind))


def cvt(f, modifiers, operands):
    *how, to, source = modifiers
    if "sat" in how:
        raise NotImplementedError(f"the PTX conversion {'.'.join(modifiers)}")
    value, wide, narrow = f.read(operands[1], source), width_of(to), width_of(source)
    old, new = type_of(source), type_of(to)
    if "ftz" in how and source == "f32":
        value = f.flushed(value, 32)
    rounding = next((ROUND[word] for word in how if word in ROUND), None)
    if source[0] == "f" and rounding:
        value = f.fresh(f"call {old} @llvm.{rounding}.f{narrow}({old} {value})")
    if source[0] == "f" and to[0] != "f":  # what is too large becomes the largest number
        name = f"@llvm.fpto{sign_of(to)}i.sat.i{wide}.f{narrow}"
        value = f.fresh(f"call {new} {name}({old} {value})")
    elif source[0] != "f" and to[0] == "f":
        value = f.fresh(f"{sign_of(source)}itofp {old} {value} to {new}")
    elif wide != narrow:
        longer = "fpext" if to[0] == "f" else "sext" if source[0] == "s" else "zext"
        shorter = "fptrunc" if to[0] == "f" else "trunc"
        value = f.fresh(f"{longer if wide > narrow else shorter} {old} {value} to {new}")
    if "ftz" in how and to == "f32":
        value = f.flushed(value, 32)
    f.write(operands[0], to, value)


def cvta(f, modifiers, operands):
    f.write(operands[0], "u64", f.read(operands[1], "u64"))


def memory(load, f, modifiers, operands):
    """A number, or several side by side, from memory or into it."""
    values, place = operands if load else operands[::-1]
    kind = modifiers[-1]
    base, offset = re.fullmatch(r"\[([%\w$.]+)\s*\+?\s*(-?\d+)?\]", place).groups()
    address = f.read(base, "u64")
    for i, value in enumerate(split(values.strip("{}"))):
        at = f.fresh(f"add i64 {address}, {int(offset or 0) + i * width_of(kind) // 8}")
        at = f.fresh(f"inttoptr i64 {at} to ptr")
        if load:
            f.write(value, kind, f.fresh(f"load {type_of(kind)}, ptr {at}"))
        else:
            f.lines.append(f"store {type_of(kind)} {f.read(value, kind)}, ptr {at}")


def bra(f, modifiers, operands):
    f.leave(f'br label %"{operands[0]}"')


def ret(f, modifiers, operands):
    f.leave("ret void")


def call(f, modifiers, operands):
    (name,) = (operand for operand in operands if not operand.startswith("("))
    given = [part for operand in operands if operand != name for part in split(operand[1:-1])]
    thread = "i32 %tid, i32 %ntid, i32 %ctaid, i32 %nctaid"
    f.lines.append(f'call void @"{name}"({"".join(f"i64 {f.places[g]}, " for g in given)}{thread})')


INSTRUCTIONS = {name: functools.partial(formed, forms) for name, forms in FORMS.items()}
INSTRUCTIONS |= {
    "add": functools.partial(carrying, "add", False, INSTRUCTIONS["add"]),
    "addc": functools.partial(carrying, "add", True, None),
    "sub": functools.partial(carrying, "sub", False, INSTRUCTIONS["sub"]),
    "subc": functools.partial(carrying, "sub", True, None),
    "mad": functools.partial(carrying, "add", False, mad),
    "madc": functools.partial(carrying, "add", True, None),
    "shl": functools.partial(shift, True),
    "shr": functools.partial(shift, False),
    "ld": functools.partial(memory, True),
    "st": functools.partial(memory, False),
    **{function.__name__: function for function in (mul, rcp, rsqrt, clz, setp, selp, mov, cvt)},
    **{function.__name__: function for function in (cvta, bra, ret, call)},
}
