"""A checkpoint's tensors, packed on a device as kernels read them: elements of one dtype, or codes.

Knows tensors by their Hugging Face names; not layers, or what they are for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pearl_rt.checkpoint.shapes import bits_of
from pearl_rt.checkpoint.source import stored_forms
from pearl_rt.checkpoint.stored_tensors import StoredTensors
from pearl_rt.model.coded_matrix import CodedMatrix, Part, values_of
from pearl_rt.reference.groups import GroupForm

Tensor = torch.Tensor
Matrix: TypeAlias = Tensor | CodedMatrix


@dataclass(frozen=True)
class Packing:
    """Where tensors go, and in which form. What has codes keeps them."""

    tensors: Mapping[str, Part]
    dtype: torch.dtype
    device: torch.device
    weights: str = "auto"  # what wider matrices are rounded to

    def tensor(self, *names: str) -> Tensor:
        """One below the other, as elements."""
        parts = [values_of(self.tensors[name]).to(self.device, self.dtype) for name in names]
        return (torch.cat(parts) if len(parts) > 1 else parts[0].clone()).contiguous()

    def matrix(self, *names: str) -> Matrix:
        """Rows that are packed as one have one form, or none if one of them has none. Raises CheckpointError
        for weights that cannot be rounded.
        """
        forms, bits = stored_forms(self.tensors), bits_of(names[0], self.weights)
        form = GroupForm.joined([forms.get(name) for name in names], bits)
        if form is None:
            return self.tensor(*names)
        return CodedMatrix.pack({name: self._part(name, bits) for name in names}, form, bits, self.device)

    def _part(self, name: str, bits: int) -> Part:
        tensors = self.tensors
        if isinstance(tensors, StoredTensors) and (form := tensors.form(name)) and form.keeps_codes(bits):
            return tensors.groups(name) or tensors[name]
        return tensors[name]
