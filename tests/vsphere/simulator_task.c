// vsphere-simulator: tasks. One thread does what is due; what a task does happens when it ends, not when it is asked.
#include "simulator.h"

#include "base/clock.h"

#include <time.h>

Task *task_new(const char *method, Vm *vm)
{
    Task *task = sim_more(NULL, 0, sizeof *task);
    snprintf(task->id, sizeof task->id, "task-%d", sim.next_id++);
    task->method = method;
    task->vm = vm;
    task->queued_us = clock_utc_us();
    task->due_ms = clock_mono_ms();
    for (size_t i = 0; i < sim.n_plans; i++) {
        Plan *plan = &sim.plans[i];
        if (plan->times && strcmp(plan->call, method) == 0) {
            plan->times--;
            task->due_ms += plan->ms;
            task->held = plan->held;
            task->not_cancelable = plan->not_cancelable;
            task->fault = plan->fault;
            break;
        }
    }
    *grow(sim.tasks, sim.n_tasks) = task;
    pthread_cond_broadcast(&sim.changed);
    return task;
}

static bool freeze(Task *task, Err *err)
{
    bool quiesce = task->quiesce && strcmp(task->vm->power, "poweredOn") == 0;
    if (quiesce && task->vm->quiesce_fails)
        return fault_set(&task->fault, "ApplicationQuiesceFault", NULL,
                         "An error occurred while quiescing the virtual machine. See the virtual machine's event log "
                         "for details.");
    return state_freeze(task->vm, task->name, task->description, quiesce, &task->snapshot, err);
}

static bool perform(Task *task, Err *err)
{
    if (task->fault.type[0])
        return false;
    if (strcmp(task->method, "CreateSnapshot_Task") == 0)
        return freeze(task, err);
    if (strcmp(task->method, "RemoveSnapshot_Task") == 0) {
        if (task->snapshot->gone)
            return fault_set(&task->fault, "ManagedObjectNotFound", NULL, "The object has already been deleted");
        return state_thaw(task->snapshot, task->children, err);
    }
    if (task->cbt != CBT_UNSET)
        state_switch_cbt(task->vm, task->cbt == CBT_ON);
    return true;
}

static void finish(Task *task)
{
    Err err = ERR_INIT;
    bool ok = perform(task, &err);
    if (!ok && !task->fault.type[0])
        fault_set(&task->fault, "GenericVmConfigFault", NULL, "%s", err.details);
    task->state = ok ? TASK_SUCCESS : TASK_ERROR;
    task->progress = ok ? 100 : task->progress;
    task->done_us = clock_utc_us();
    pthread_cond_broadcast(&sim.changed);
}

static void *run(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&sim.lock);
    while (!sim.stopping) {
        int64_t now = clock_mono_ms(), next = now + 3600 * 1000;
        for (size_t i = 0; i < sim.n_tasks; i++) {
            Task *task = sim.tasks[i];
            if (task->state != TASK_RUNNING || task->held)
                continue;
            if (task->due_ms <= now)
                finish(task);
            else
                next = MIN(next, task->due_ms);
        }
        struct timespec until = {.tv_sec = next / 1000, .tv_nsec = next % 1000 * 1000000};
        pthread_cond_timedwait(&sim.changed, &sim.lock, &until);
    }
    pthread_mutex_unlock(&sim.lock);
    return NULL;
}

bool task_start_thread(Err *err)
{
    pthread_t thread;
    int why = pthread_create(&thread, NULL, run, NULL);
    if (why)
        return err_errno(err, why, "a thread");
    pthread_detach(thread);
    return true;
}
