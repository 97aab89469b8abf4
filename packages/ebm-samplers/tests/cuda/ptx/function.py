"""One function of PTX as it is written in LLVM's language, statement by statement.

Registers are memory cells of their width, which LLVM turns into registers again. Addresses of all
kinds are numbers of 64 bits; parameters are addresses of what is given.
"""

import re

from ptx.instructions import FLOAT, INSTRUCTIONS, split, type_of, width_of

SPECIAL = {"%tid.x": "%tid", "%ntid.x": "%ntid", "%ctaid.x": "%ctaid", "%nctaid.x": "%nctaid"}
THREAD = "i32 %tid, i32 %ntid, i32 %ctaid, i32 %nctaid"
SMALLEST = {32: "0x3810000000000000", 64: "0x0010000000000000"}  # normal numbers, as LLVM has them


class Function:
    """What has been written of a function.

    Args:
        name: Its name.
        parameters: Names of its results and parameters.
        entry: Whether it is a kernel.
    """

    def __init__(self, name, parameters, entry):
        self.name, self.parameters, self.entry = name, parameters, entry
        self.cells, self.lines, self.n = ["%cc = alloca i1"], [], 0
        self.widths = {}  # of registers
        self.places = {}  # addresses of what is named
        for i, parameter in enumerate(parameters):
            self.places[parameter] = f'%"{parameter}"'
            if entry:
                at = self.fresh(f"getelementptr ptr, ptr %params, i64 {i}", self.cells)
                self.places[parameter] = self.fresh(f"load i64, ptr {at}", self.cells)

    def text(self):
        """The whole function."""
        given = ["ptr %params"] if self.entry else [f'i64 %"{p}"' for p in self.parameters]
        lines = [*self.cells, "br label %begin", "begin:", *self.lines, "ret void"]
        body = "\n".join(lines)
        kept = "" if self.entry else "internal "
        return f'define {kept}void @"{self.name}"({", ".join([*given, THREAD])}) {{\n{body}\n}}\n'

    def add(self, statement):
        """Write a label (with its colon), a declaration or an instruction."""
        if statement.endswith(":"):
            self.label(statement[:-1])
        elif statement.startswith("."):
            self.declare(statement)
        else:
            guard, text = re.fullmatch(r"(?:@(!?%[\w$]+) )?(.*)", statement).groups()
            name, _, rest = text.partition(" ")
            operation, *modifiers = name.split(".")
            if operation not in INSTRUCTIONS:
                raise NotImplementedError(f"the PTX instruction {name}")
            if guard is not None:
                after = self.guarded(guard)
            INSTRUCTIONS[operation](self, modifiers, split(rest))
            if guard is not None:
                self.label(after)

    def guarded(self, guard):
        """Go on only where a predicate holds; gives the label to be set where all go on."""
        holds = self.read(guard.removeprefix("!"), "pred")
        self.n += 1
        then, after = f"then{self.n}", f"after{self.n}"
        ways = (after, then) if guard.startswith("!") else (then, after)
        self.lines.append(f"br i1 {holds}, label %{ways[0]}, label %{ways[1]}")
        self.lines.append(f"{then}:")
        return after

    def label(self, name):
        """Set a label."""
        self.lines += [f'br label %"{name}"', f'"{name}":']

    def leave(self, how):
        """End the block, by a branch or a return; what follows without a label is never reached."""
        self.n += 1
        self.lines += [how, f"unreached{self.n}:"]

    def declare(self, text):
        """Registers, memory of the thread, parameters of a call."""
        kind, rest = text.split(" ", 1)
        if kind == ".reg":
            type_, names = rest.split(" ", 1)
            for name in names.split(","):
                stem, count = re.fullmatch(r"\s*([%\w$]+)(?:<(\d+)>)?\s*", name).groups()
                for i in range(int(count or 1)):
                    self.register(stem if count is None else f"{stem}{i}", width_of(type_[1:]))
        elif kind in (".local", ".param"):
            width, name, size = re.search(r"\.[bfsu](\d+) ([\w$]+)(?:\[(\d+)\])?", rest).groups()
            room = int(width) // 8 * int(size or 1)
            cell = self.fresh(f"alloca [{room} x i8], align 16", self.cells)
            self.places[name] = self.fresh(f"ptrtoint ptr {cell} to i64", self.cells)
        elif kind not in (".pragma", ".loc"):
            raise NotImplementedError(f"the PTX directive {text}")

    def register(self, name, width):
        """A register; that scopes have their own of the same name is of no matter."""
        if self.widths.get(name) != width:
            self.widths[name] = width
            self.cells.append(f'%"{name}.{width}" = alloca i{width}')

    def fresh(self, text, lines=None):
        """Write a value; gives its name."""
        self.n += 1
        (self.lines if lines is None else lines).append(f"%t{self.n} = {text}")
        return f"%t{self.n}"

    def bits(self, operand):
        """An operand as it lies in its register, and its width (None: of a constant)."""
        if operand in SPECIAL:
            return SPECIAL[operand], 32
        if operand in self.widths:
            width = self.widths[operand]
            return self.fresh(f'load i{width}, ptr %"{operand}.{width}"'), width
        if operand in self.places:
            return self.places[operand], 64
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", operand):
            return str(int(operand[2:], 16)), None
        if re.fullmatch(r"-?(\d+|0x[0-9a-fA-F]+)", operand):
            return str(int(operand, 0)), None
        return self.fresh(f'ptrtoint ptr @"{operand}" to i64'), 64

    def read(self, operand, kind):
        """An operand as a number of a kind ("s32", "f64", "pred")."""
        width = width_of(kind)
        value, has = self.bits(operand)
        if has is not None and has != width:
            change = "trunc" if has > width else "zext"
            value = self.fresh(f"{change} i{has} {value} to i{width}")
        if kind[0] == "f":
            value = self.fresh(f"bitcast i{width} {value} to {FLOAT[width]}")
        return value

    def write(self, register, kind, value):
        """Put a number of a kind into a register."""
        width, wanted = width_of(kind), self.widths[register]
        if kind[0] == "f":
            value = self.fresh(f"bitcast {type_of(kind)} {value} to i{width}")
        if wanted != width:
            change = "trunc" if wanted < width else "sext" if kind[0] == "s" else "zext"
            value = self.fresh(f"{change} i{width} {value} to i{wanted}")
        self.lines.append(f'store i{wanted} {value}, ptr %"{register}.{wanted}"')

    def flushed(self, value, width):
        """Zero of the same sign in place of what is smaller than the smallest normal number."""
        kind = FLOAT[width]
        size = self.fresh(f"call {kind} @llvm.fabs.f{width}({kind} {value})")
        small = self.fresh(f"fcmp olt {kind} {size}, {SMALLEST[width]}")
        zero = self.fresh(f"call {kind} @llvm.copysign.f{width}({kind} 0.0, {kind} {value})")
        return self.fresh(f"select i1 {small}, {kind} {zero}, {kind} {value}")
