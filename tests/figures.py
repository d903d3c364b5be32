"""What stands on a figure, and whether it can be read."""


def labels_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def texts_of(axes):
    yield from (axes.title, axes._left_title)
    yield from axes.get_legend().get_texts() if axes.get_legend() else ()
    for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
        yield axis.label
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if low <= tick.get_loc() <= high and tick.label1.get_visible():
                yield tick.label1


def texts_are_legible(figure):
    """Check that no text of a figure lies over another one, or leaves the figure."""
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in texts_of(axes)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    # Letters on pixels may be a pixel wider.
    page = figure.bbox.padded(1)
    for i, one in enumerate(boxes):
        assert page.contains(*one.min)
        assert page.contains(*one.max)
        assert not any(one.overlaps(other) for other in boxes[:i])
