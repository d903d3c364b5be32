"""The conversion of images to the inputs of a network, as an ONNX graph."""

import numpy as np

from sktransfer.inputs._images import MAX_ASPECT, ImageReader

# The names of the input of the graph and of its output, which the network takes.
IMAGES, INPUTS = "images", "network_inputs"


def image_graph(onnx, reader: ImageReader, like):
    """Return the graph from decoded images to normalised inputs, as an ONNX model.

    `like` is the graph that will follow it, from which it takes the versions of the
    format and of the operators.
    """
    if type(reader) is not ImageReader:
        raise ValueError(
            "export_onnx knows how torchvision and timm convert images, but not how "
            f"this {type(reader).__name__} does. Nothing was written."
        )
    make, types = onnx.helper, onnx.TensorProto
    # The settings with which ONNX resizes as Pillow does: antialiased, with weights
    # only for pixels within the image, and -0.5 as the coefficient of the cubic filter.
    cubic = reader.interpolation == "bicubic"
    how = {"antialias": 1, "exclude_outside": 1}
    how |= {"mode": "cubic", "cubic_coeff_a": -0.5} if cubic else {"mode": "linear"}
    node = make.make_node
    nodes = [
        node("Shape", [IMAGES], ["shape"]),
        node("Slice", ["shape", "one", "channels"], ["size"]),
        node("ReduceMin", ["size"], ["short"], keepdims=1),
        node("Transpose", [IMAGES], ["planes"], perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["pixels"], to=types.FLOAT),
        # The ends of images beyond the largest aspect ratio are cropped first.
        node("Mul", ["short", "aspect"], ["most"]),
        node("Min", ["size", "most"], ["kept"]),
        *_centre(make, types, "pixels", "size", "kept", "middle"),
        node("Mul", ["kept", "resize"], ["area"]),
        node("Div", ["area", "short"], ["resized_size"]),
        node("Slice", ["shape", "zero", "one"], ["n"]),
        *_resized(node, how),
        *_centre(make, types, "resized", "resized_size", "crop", "cut"),
        node("Sub", ["cut", "mean"], ["centred"]),
        node("Div", ["centred", "std"], [INPUTS]),
    ]
    constants = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in _numbers_of(reader).items()
    ]
    side = reader.crop
    entry = make.make_tensor_value_info(
        IMAGES, types.UINT8, ["n", "height", "width", 3]
    )
    out = make.make_tensor_value_info(INPUTS, types.FLOAT, ["n", 3, side, side])
    graph = make.make_graph(nodes, "preprocessing", [entry], [out], constants)
    return make.make_model(
        graph, ir_version=like.ir_version, opset_imports=like.opset_import
    )


def _numbers_of(reader: ImageReader) -> dict[str, np.ndarray]:
    return {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2], dtype=np.float32),
        "spatial": np.array([2, 3]),
        "channels": np.array([3]),
        "aspect": np.array([MAX_ASPECT]),
        "resize": np.array([reader.resize]),
        "crop": np.array([reader.crop, reader.crop]),
        "half": np.array(0.5, dtype=np.float32),
        "low": np.array(0, dtype=np.float32),
        "high": np.array(255, dtype=np.float32),
        # The graph computes on the scale [0, 255].
        "mean": 255 * np.array(reader.mean, dtype=np.float32).reshape(1, 3, 1, 1),
        "std": 255 * np.array(reader.std, dtype=np.float32).reshape(1, 3, 1, 1),
    }


def _resized(node, how: dict) -> list:
    """Resize the width, then the height, and round both times, as Pillow does."""
    nodes = [
        node("Split", ["kept"], ["height", "width"], num_outputs=2),
        node("Split", ["resized_size"], ["new_height", "new_width"], num_outputs=2),
        node("Concat", ["height", "new_width"], ["between_size"], axis=0),
    ]
    for before, name in (("middle", "between"), ("between", "resized")):
        nodes += [
            node("Concat", ["n", "channels", f"{name}_size"], [f"{name}_4d"], axis=0),
            node("Resize", [before, "", "", f"{name}_4d"], [f"{name}_raw"], **how),
            # Halves are rounded up; the operator Round would round them to even.
            node("Add", [f"{name}_raw", "half"], [f"{name}_higher"]),
            node("Floor", [f"{name}_higher"], [f"{name}_whole"]),
            node("Clip", [f"{name}_whole", "low", "high"], [name]),
        ]
    return nodes


def _centre(make, types, x, size, wanted, out):
    """Return nodes that crop the centre, rounding offsets to even as torchvision."""
    names = [f"{out}_{name}" for name in ("spare", "float", "half", "start", "begin")]
    spare, as_float, half, start, begin = names
    return [
        make.make_node("Sub", [size, wanted], [spare]),
        make.make_node("Cast", [spare], [as_float], to=types.FLOAT),
        make.make_node("Div", [as_float, "two"], [half]),
        make.make_node("Round", [half], [start]),
        make.make_node("Cast", [start], [begin], to=types.INT64),
        make.make_node("Add", [begin, wanted], [f"{out}_end"]),
        make.make_node("Slice", [x, begin, f"{out}_end", "spatial"], [out]),
    ]
