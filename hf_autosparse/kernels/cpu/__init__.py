"""The C kernels: building, binding, and the forms that they compute with."""
