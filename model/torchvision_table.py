"""The table of torchvision's classification networks, one row each, so that their names, widths and state dicts are
known without building them, also those that the installed torchvision lacks.

``python3 -m model.torchvision_table`` prints the rows anew, from the installed torchvision, for the networks that are
in the table: put them in the place of those that are here.
"""
import collections
import hashlib

__all__ = ["Row", "ROWS", "digest_of"]

Row = collections.namedtuple("Row", "name family width millions digest since more")
Row.__doc__ = """A network of torchvision.

name: torchvision's. family: the row of ``model.torchvision_networks.FAMILIES`` that it is one of.
width: of the pooled features. millions: of parameters, without classifier. digest: see ``digest_of``; None for ResNets.
since: the version of torchvision that it came with; None for 0.11, the oldest that is supported, and before.
more: what else differs from the family, {attribute of ``Backbone``: value}.
"""

# Not the same in all state dicts of a network: positions depend on the size of pictures, the others on the versions.
LEFT_OUT = ("num_batches_tracked", "pos_embedding", "relative_position_index", "relative_coords_table")


def digest_of(weights):
    """Return a short digest of the names and shapes in a state dict, {name: tensor}, of a network without classifier.

    Those of the pooling, and those that are not the same in all state dicts of a network, don't count.
    """
    lines = ["{} {}".format(name, list(value.shape)) for name, value in weights.items()
             if name.split(".")[-1] not in LEFT_OUT and not name.startswith("pool.")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:10]


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

ROWS = [Row(*row) for row in [
    ("alexnet", "features", 256, 2.47, "b17c61a06a", None, {"least_side": 63}),
    ("convnext_base", "convnext", 1024, 87.566, "2af0e4c282", "0.12", {}),
    ("convnext_large", "convnext", 1536, 196.23, "b465b53092", "0.12", {}),
    ("convnext_small", "convnext", 768, 49.455, "a39288160e", "0.12", {}),
    ("convnext_tiny", "convnext", 768, 27.82, "505dad8ef8", "0.12", {}),
    ("densenet121", "densenet", 1024, 6.954, "e25c221662", None, {}),
    ("densenet161", "densenet", 2208, 26.472, "1165655d1e", None, {}),
    ("densenet169", "densenet", 1664, 12.484, "c7b5c37294", None, {}),
    ("densenet201", "densenet", 1920, 18.093, "9905b56c32", None, {}),
    ("efficientnet_b0", "features", 1280, 4.008, "833a4a6059", None, {}),
    ("efficientnet_b1", "features", 1280, 6.513, "210b551566", None, {}),
    ("efficientnet_b2", "features", 1408, 7.701, "c4e6436c9b", None, {}),
    ("efficientnet_b3", "features", 1536, 10.696, "6a6095c437", None, {}),
    ("efficientnet_b4", "features", 1792, 17.549, "a3629c1d09", None, {}),
    ("efficientnet_b5", "features", 2048, 28.341, "850e68ea14", None, {}),
    ("efficientnet_b6", "features", 2304, 40.736, "dc81ff0520", None, {}),
    ("efficientnet_b7", "features", 2560, 63.787, "3b811d5bf6", None, {}),
    ("efficientnet_v2_l", "features", 1280, 117.234, "152d08432c", "0.13", HALF),
    ("efficientnet_v2_m", "features", 1280, 52.858, "0428ee59db", "0.13", {}),
    ("efficientnet_v2_s", "features", 1280, 20.177, "672989009f", "0.13", {}),
    ("googlenet", "googlenet", 1024, 5.6, "a9a02176c1", None, {}),
    ("inception_v3", "inception", 2048, 21.786, "b628bc492e", None, {"least_side": 75}),
    ("maxvit_t", "maxvit", 512, 30.145, "9332d8b410", "0.14", {"least_side": 224, "step_of_sides": 224}),
    ("mnasnet0_5", "mnasnet", 1280, 0.938, "d9ce4c0ebe", None, {}),
    ("mnasnet0_75", "mnasnet", 1280, 1.889, "8cd83fc79c", None, {}),
    ("mnasnet1_0", "mnasnet", 1280, 3.102, "44caf0b4f2", None, {}),
    ("mnasnet1_3", "mnasnet", 1280, 5.001, "6737239807", None, {}),
    ("mobilenet_v2", "features", 1280, 2.224, "f673e9d92a", None, {}),
    ("mobilenet_v3_large", "features", 960, 2.972, "b07786df9b", None, {}),
    ("mobilenet_v3_small", "features", 576, 0.927, "2fe7f0bab8", None, {}),
    ("regnet_x_16gf", "regnet", 2048, 52.23, "ef2b705faf", None, {}),
    ("regnet_x_1_6gf", "regnet", 912, 8.277, "d08015fddd", None, {}),
    ("regnet_x_32gf", "regnet", 2520, 105.291, "0159e91a65", None, {}),
    ("regnet_x_3_2gf", "regnet", 1008, 14.288, "53212974b2", None, {}),
    ("regnet_x_400mf", "regnet", 400, 5.095, "55b580ead3", None, {}),
    ("regnet_x_800mf", "regnet", 672, 6.587, "7b863e85d1", None, {}),
    ("regnet_x_8gf", "regnet", 1920, 37.652, "06de2bcbee", None, {}),
    ("regnet_y_128gf", "regnet", 7392, 637.42, "72c6016b26", "0.13", {}),
    ("regnet_y_16gf", "regnet", 3024, 80.565, "83e80d7909", None, {}),
    ("regnet_y_1_6gf", "regnet", 888, 10.313, "13117c31b0", None, {}),
    ("regnet_y_32gf", "regnet", 3712, 141.334, "76838743e3", None, {}),
    ("regnet_y_3_2gf", "regnet", 1512, 17.923, "ba12a7f14c", None, {}),
    ("regnet_y_400mf", "regnet", 440, 3.903, "7ba4bc85e7", None, {}),
    ("regnet_y_800mf", "regnet", 784, 5.648, "6399a67aa0", None, {}),
    ("regnet_y_8gf", "regnet", 2016, 37.364, "07cd23ab0c", None, {}),
    ("resnet101", "resnet", 2048, 42.5, None, None, {"blocks": (3, 4, 23, 3), "inner": (64, 64)}),
    ("resnet152", "resnet", 2048, 58.144, None, None, {"blocks": (3, 8, 36, 3), "inner": (64, 64)}),
    ("resnet18", "resnet", 512, 11.177, None, None, {"blocks": (2, 2, 2, 2), "inner": (64, 64)}),
    ("resnet34", "resnet", 512, 21.285, None, None, {"blocks": (3, 4, 6, 3), "inner": (64, 64)}),
    ("resnet50", "resnet", 2048, 23.508, None, None, {"blocks": (3, 4, 6, 3), "inner": (64, 64)}),
    ("resnext101_32x8d", "resnet", 2048, 86.742, None, None, {"blocks": (3, 4, 23, 3), "inner": (256, 8)}),
    ("resnext101_64x4d", "resnet", 2048, 81.406, None, "0.13", {"blocks": (3, 4, 23, 3), "inner": (256, 4)}),
    ("resnext50_32x4d", "resnet", 2048, 22.98, None, None, {"blocks": (3, 4, 6, 3), "inner": (128, 4)}),
    ("shufflenet_v2_x0_5", "shufflenet", 1024, 0.342, "b6fb8dd93d", None, {}),
    ("shufflenet_v2_x1_0", "shufflenet", 1024, 1.254, "c0756919dc", None, {}),
    ("shufflenet_v2_x1_5", "shufflenet", 1024, 2.479, "be9448da40", None, {}),
    ("shufflenet_v2_x2_0", "shufflenet", 2048, 5.345, "448b6f741f", None, {}),
    ("squeezenet1_0", "features", 512, 0.735, "1f11e45a6a", None, {}),
    ("squeezenet1_1", "features", 512, 0.722, "644598888b", None, {}),
    ("swin_b", "swin", 1024, 86.743, "236a5e3d8d", "0.13", {}),
    ("swin_s", "swin", 768, 48.837, "b5f7fc03bb", "0.13", {}),
    ("swin_t", "swin", 768, 27.519, "a3664fc1fd", "0.13", {}),
    ("swin_v2_b", "swin", 1024, 86.906, "5618412de4", "0.14", {}),
    ("swin_v2_s", "swin", 768, 48.968, "9aca3fc470", "0.14", {}),
    ("swin_v2_t", "swin", 768, 27.583, "43754fa635", "0.14", {}),
    ("vgg11", "features", 512, 9.22, "f40a1795c6", None, {}),
    ("vgg11_bn", "features", 512, 9.226, "5990375790", None, {}),
    ("vgg13", "features", 512, 9.405, "c7788676d9", None, {}),
    ("vgg13_bn", "features", 512, 9.411, "5ba737564a", None, {}),
    ("vgg16", "features", 512, 14.715, "cf70e16bc5", None, {}),
    ("vgg16_bn", "features", 512, 14.723, "70dd509b24", None, {}),
    ("vgg19", "features", 512, 20.024, "a580df3890", None, {}),
    ("vgg19_bn", "features", 512, 20.035, "c17ec09369", None, {}),
    ("vit_b_16", "vit", 768, 85.799, "f04f2c263e", "0.12", {"step_of_sides": 16}),
    ("vit_b_32", "vit", 768, 87.455, "a8d48bc278", "0.12", {"step_of_sides": 32}),
    ("vit_h_14", "vit", 1280, 630.765, "25a8700c81", "0.13", {"step_of_sides": 14}),
    ("vit_l_16", "vit", 1024, 303.302, "884a79d94c", "0.12", {"step_of_sides": 16}),
    ("vit_l_32", "vit", 1024, 305.51, "c998ad9785", "0.12", {"step_of_sides": 32}),
    ("wide_resnet101_2", "resnet", 2048, 124.838, None, None, {"blocks": (3, 4, 23, 3), "inner": (128, 128)}),
    ("wide_resnet50_2", "resnet", 2048, 66.834, None, None, {"blocks": (3, 4, 6, 3), "inner": (128, 128)}),
]]


def _print_rows():
    """Print each row whose network the installed torchvision has, with width, parameters and digest found anew."""
    import torch

    from model.compat import import_torchvision
    from model.torchvision_networks import NETWORKS  # it imports this module

    for row in ROWS:
        if hasattr(import_torchvision().models, row.name):
            backbone = NETWORKS[row.name](pretrained=False)
            count = sum(parameter.numel() for parameter in backbone.parameters())
            pictures = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
            row = row._replace(width=backbone.eval()(pictures).shape[1], millions=round(count / 1e6, 3),
                               digest=digest_of(backbone.state_dict()) if row.family != "resnet" else None)
        print("    {},".format(str(tuple(row)).replace(str(HALF), "HALF").replace("'", '"')), flush=True)


if __name__ == "__main__":
    _print_rows()
