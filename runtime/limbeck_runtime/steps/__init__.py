"""The methods of the pipeline, one file each: a step is a function (settings, inputs, context) -> StepResult.

Beside them lies what training steps share: the task that workers build their part from, its objective, and the
teacher's outputs as the student reads them.
"""
