"""Small networks of other libraries, written as those write them."""

import json
from itertools import pairwise

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

ARGUMENTS = {
    "use_flash_attention": True,  # as networks are built here: the same bits
    "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": [1, 1], "channels": [32, 64],
    "attention_levels": [False, True], "norm_num_groups": 32, "num_head_channels": 16,
}  # fmt: skip

# MONAI's names -> those of the others, one line for each kind of layer, written from their sources by hand.
GENERATIVE = ((".attn.to_", ".to_"), (".attn.out_proj.", ".proj_attn."), ("upsampler.postconv.", "upsampler.conv."))
GUIDED = (
    ("conv_in.conv.", "input_blocks.0.0."), ("down_blocks.0.resnets.0.", "input_blocks.1.0."),
    ("down_blocks.0.downsampler.op.conv.", "input_blocks.2.0.op."), ("down_blocks.1.resnets.0.", "input_blocks.3.0."),
    ("down_blocks.1.attentions.0.", "input_blocks.3.1."), ("middle_block.resnet_1.", "middle_block.0."),
    ("middle_block.attention.", "middle_block.1."), ("middle_block.resnet_2.", "middle_block.2."),
    ("up_blocks.0.resnets.0.", "output_blocks.0.0."), ("up_blocks.0.attentions.0.", "output_blocks.0.1."),
    ("up_blocks.0.resnets.1.", "output_blocks.1.0."), ("up_blocks.0.attentions.1.", "output_blocks.1.1."),
    ("up_blocks.0.upsampler.postconv.conv.", "output_blocks.1.2.conv."),
    ("up_blocks.1.resnets.0.", "output_blocks.2.0."), ("up_blocks.1.resnets.1.", "output_blocks.3.0."),
    (".norm1.", ".in_layers.0."), (".conv1.conv.", ".in_layers.2."), (".time_emb_proj.", ".emb_layers.1."),
    (".norm2.", ".out_layers.0."), (".conv2.conv.", ".out_layers.3."), (".skip_connection.conv.", ".skip_connection."),
    ("out.2.conv.", "out.2."), ("class_embedding.", "label_emb."),
)  # fmt: skip


def randomised(build):
    """A module with weights of its own everywhere (MONAI's start at zero output)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


def unet(**changes):
    return randomised(lambda: DiffusionModelUNet(**(ARGUMENTS | changes)))


def renamed(weights, names):
    result = {}
    for name, value in weights.items():
        for old, new in names:
            name = name.replace(old, new)
        result[name] = value.clone()
    return result


def guided_diffusion(network, new_order=False):
    weights = renamed(network.state_dict(), GUIDED)
    for place in {name.rsplit(".attn.", 1)[0] for name in weights if ".attn." in name}:
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{place}.attn.to_{letter}.{kind}") for letter in "qkv"]
            # The original order: for each head its queries, keys and values.
            heads = [torch.cat([part.split(16)[h] for part in parts]) for h in range(4)]
            qkv = torch.cat(parts if new_order else heads)
            out = weights.pop(f"{place}.attn.out_proj.{kind}")
            weights[f"{place}.qkv.{kind}"] = qkv[..., None] if kind == "weight" else qkv
            weights[f"{place}.proj_out.{kind}"] = out[..., None] if kind == "weight" else out
    return weights


def diffusers_folder(folder, weights, config, scheduler=None):
    """A pipeline's folder."""
    from safetensors.torch import save_file

    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    if scheduler is not None:
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


class Residual(torch.nn.Module):
    """A block of the foreign denoiser below."""

    def __init__(self, width):
        super().__init__()
        convolutions = (torch.nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.res = torch.nn.Sequential(next(convolutions), torch.nn.ReLU(), next(convolutions))

    def forward(self, x):
        return x + self.res(x)


class ForeignDRUNet(torch.nn.Module):
    """deepinv's DRUNet, written down from its description: layers, names and the noise level as last image."""

    def __init__(self, channels=(4, 6, 8, 10), blocks=2):
        super().__init__()
        self.m_head = torch.nn.Conv2d(2, channels[0], 3, padding=1, bias=False)
        for k, (a, b) in enumerate(pairwise(channels), 1):
            residuals = [[Residual(a) for _ in range(blocks)] for _ in range(2)]
            down, up = torch.nn.Conv2d(a, b, 2, 2, bias=False), torch.nn.ConvTranspose2d(b, a, 2, 2, bias=False)
            setattr(self, f"m_down{k}", torch.nn.Sequential(*residuals[0], down))
            setattr(self, f"m_up{k}", torch.nn.Sequential(up, *residuals[1]))
        body = [Residual(channels[-1]) for _ in range(blocks)]
        # Theirs does not number a single layer.
        self.m_body = torch.nn.Sequential(*body) if blocks > 1 else body[0]
        self.m_tail = torch.nn.Conv2d(channels[0], 1, 3, padding=1, bias=False)

    def forward(self, x, sigma: float):
        x1 = self.m_head(torch.cat((x, torch.ones_like(x) * sigma), 1))
        x2 = self.m_down1(x1)
        x3 = self.m_down2(x2)
        x4 = self.m_down3(x3)
        x = self.m_up3(self.m_body(x4) + x4)
        return self.m_tail(self.m_up1(self.m_up2(x + x3) + x2) + x1)
