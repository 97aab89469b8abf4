"""Linear maps of vectors as sums of products of matrices, symbolically; see `algebra`."""

Factor = tuple[int, int, int, bool]  # a value, as a matrix of so many rows, columns; if turned
Scalar = tuple[int, bool]  # a number and whether it divides
Word = tuple[tuple[Scalar, ...], tuple[Factor, ...]]
Map = dict[Word, float]  # a sum of products of matrices
Linear = dict[int, Map]  # by the value that is mapped

IDENTITY: Word = ((), ())


def times(a: Map, b: Map) -> Map:
    """First a, then b."""
    product: Map = {}
    for (s, u), x in a.items():
        for (t, v), y in b.items():
            word = (tuple(sorted(s + t)), u + v)
            product[word] = product.get(word, 0.0) + x * y
    return {word: number for word, number in product.items() if number}


def plus(a: Map, b: Map) -> Map:
    """The sum."""
    total = dict(a)
    for word, number in b.items():
        total[word] = total.get(word, 0.0) + number
    return {word: number for word, number in total.items() if number}


def transposed(a: Map) -> Map:
    """Each product in reverse, of transposed matrices."""
    return {
        (s, tuple((n, i, j, not t) for n, i, j, t in reversed(w))): x for (s, w), x in a.items()
    }


def is_plain(a: Map) -> bool:
    """Whether it is a multiple of the identity."""
    return all(not factors for _, factors in a)


def normalised(a: Map) -> tuple[tuple[tuple[Scalar, ...], float], Map]:
    """What all words have in common, and the rest."""
    words = sorted(a)
    common: list[Scalar] = []
    for scalar in words[0][0]:
        if all(word[0].count(scalar) > common.count(scalar) for word in words):
            common.append(scalar)
    number = a[words[0]]
    rest: Map = {}
    for (scalars, factors), x in a.items():
        left = list(scalars)
        for scalar in common:
            left.remove(scalar)
        rest[(tuple(left), factors)] = x / number
    return (tuple(common), number), rest
