"""A module of PTX in LLVM's language: its tables, its functions, and a loop over all threads."""

import re

from ptx.function import Function

LAUNCH = """
define void @launch(ptr %params, i32 %ntid, i32 %nctaid) {{
start:
  br label %block
block:
  %ctaid = phi i32 [0, %start], [%next_block, %blocks]
  br label %thread
thread:
  %tid = phi i32 [0, %block], [%next, %thread]
  call void @"{entry}"(ptr %params, i32 %tid, i32 %ntid, i32 %ctaid, i32 %nctaid)
  %next = add i32 %tid, 1
  %more = icmp ult i32 %next, %ntid
  br i1 %more, label %thread, label %blocks
blocks:
  %next_block = add i32 %ctaid, 1
  %more_blocks = icmp ult i32 %next_block, %nctaid
  br i1 %more_blocks, label %block, label %end
end:
  ret void
}}
"""

HEAD = re.compile(r"\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)[^{};]*([{;])")
PARAMETER = re.compile(r"\.param[^,]*?([\w$]+)(?:\[\d+\])?\s*(?:,|$)")
TABLE = re.compile(
    r"\.(?:global|const)(?:\s+\.align\s+\d+)?\s+\.[bsu](\d+)\s+([\w$]+)(?:\[(\d+)\])?"
    r"(?:\s*=\s*\{?([^;}]*)\}?)?\s*;"
)
STATEMENT = re.compile(r"\s*(?:[{}](?!\s*%)|([\w$]+:)(?!:)|([^;]+);)")


def translated(ptx):
    """The module in LLVM's language; its function ``launch`` runs the kernel."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    parts, entries, position = [], [], 0
    for head in HEAD.finditer(ptx):
        kind, results, name, parameters, end = head.groups()
        if end == ";":
            continue
        parts.append(_tables(ptx[position : head.start()]))
        body, position = _body(ptx, head.end())
        names = PARAMETER.findall(results or "") + PARAMETER.findall(parameters)
        function = Function(name, names, kind == "entry")
        for statement in _statements(body):
            function.add(statement)
        parts.append(function.text())
        if kind == "entry":
            entries.append(name)
    (entry,) = entries
    return "\n".join([*parts, *_declarations("".join(parts)), LAUNCH.format(entry=entry)])


def _body(text, start):
    """What stands until the brace that closes a function, and where it ends."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : brace.start()], brace.end()
    raise ValueError("a function without an end")


def _statements(body):
    """Labels (with their colon), declarations and instructions; scopes are left out."""
    position, end = 0, len(body.rstrip())
    while position < end:
        found = STATEMENT.match(body, position)
        position = found.end()
        if text := found.group(1) or found.group(2):
            yield re.sub(r"\s+", " ", text).strip()


def _tables(text):
    """Numbers that functions read."""
    lines = []
    for width, name, size, values in TABLE.findall(text):
        numbers = [int(v, 0) for v in values.split(",") if v.strip()]
        numbers += [0] * (int(size or 1) - len(numbers))
        held = ", ".join(f"i{width} {n}" for n in numbers)
        lines.append(f'@"{name}" = internal global [{len(numbers)} x i{width}] [{held}], align 16')
    return "\n".join(lines)


def _declarations(text):
    """Of LLVM's own functions, as they are called."""
    calls = re.findall(r"call (\w+) (@llvm\.[\w.]+)\(([^\n]*)\)", text)
    return sorted(
        {
            f"declare {result} {name}({', '.join(a.split()[0] for a in given.split(', '))})"
            for result, name, given in calls
        }
    )
