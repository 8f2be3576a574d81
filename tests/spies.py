"""What watches while something runs; as text it also goes to other processes."""


def counted(checkpoint):
    """Return a list that grows by the size of every part that is read from now on."""
    read, sizes = checkpoint.read, []

    def spy(entry, index=None):
        values = read(entry, index)
        sizes.append(values.size)
        return values

    checkpoint.read = spy
    return sizes
