"""Loss functions: pure functions of tensors, which know no model, no store and no step.

Distillation on logits: `distillation` (entry points), `divergence` (settings and formulas), `teachers` (the forms of a
teacher's output), `dense_teacher` and `sparse_teacher` (soft loss of a block of rows), `chunks`, `chunked_head` and
`chunked_logits` (how rows are walked). Elsewhere: `feature`, `contrastive`.
"""
